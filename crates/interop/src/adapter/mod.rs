//! Adapters of PEFT: LoRA on a GPT-2, read and held against what they say of themselves, as steps of a merge.
//!
//! Invariant: everything in an adapter's files takes part in its merge, or the adapter is refused by the field or the
//! tensor that is not understood. Deliberately not here: the arithmetic of the steps (the worker), the base model.

mod lora_config;
mod merge_plan;
mod ordered_map;
mod tensor_name;

pub use lora_config::{LoraConfig, base_model};
pub use merge_plan::{LoraAdapter, MergePlan, MergeReport, MergeStep, is_adapter, tensors};
