//! What other trainers call their settings, and what that is in a job file: Hugging Face's Trainer, Lightning, nanoGPT
//! and llm.c.
//!
//! Deliberately not here: names that are nearly right (`explain`).

use super::keys::{self, KeySpec};

/// What becomes of another trainer's setting.
#[derive(Clone, Copy, Debug)]
pub(super) enum Meaning {
    /// The same under this section and key, with the same values.
    Is(&'static str, &'static str),
    /// Said otherwise: why, section, key, and the value to write.
    Becomes(&'static str, &'static str, &'static str, &'static str),
    /// Not a setting of a job file: why.
    Nothing(&'static str),
}

use Meaning::{Becomes, Is, Nothing};

const EPOCHS: &str =
    "ckptd counts steps: epochs x training tokens / (batch_size x grad_accumulation x sequence_length)";
const RATIO: &str = "ckptd counts warm-up in steps: the ratio x steps";
const PRECISION: &str = "matrix products are in float32 or in bf16, all else is float32";
const SHAPE: &str = "the shape is that of [model] from, or of its preset";
const RESUMES: &str = "`ckptd run` goes on from the newest verified snapshot by itself";
const LINES: &str = "`ckptd run --log-every TIME` says how often a line is written";
const READS_TOKENS: &str = "the tokens are mapped from a file, there is nothing to load in parallel";
const NO_HUB: &str = "ckptd uploads nothing; `ckptd export --format hf` writes a folder that can be";
const NO_TRACKER: &str = "ckptd speaks to no tracker; `ckptd history --follow --json` gives all figures to one";
const RANKS: &str = "[ranks] count and launcher say which processes compute one training";
const ABSOLUTE: &str = "here it is a share of learning_rate, and not a rate";
const PERCENT: &str = "here it is a share, and not in percent";
const BETAS: &str = "both stand in one list";
const GLOBAL_BATCH: &str = "tokens per step are batch_size x grad_accumulation x sequence_length";

/// Names, without regard to case and to `-` against `_`, and what they mean.
const TABLE: &[(&[&str], Meaning)] = &[
    (&["max_steps", "max_iters", "num_iterations", "total_steps", "train_steps", "num_steps"], Is("train", "steps")),
    (
        &["per_device_train_batch_size", "train_batch_size", "micro_batch_size", "device_batch_size", "batch"],
        Is("train", "batch_size"),
    ),
    (
        &["gradient_accumulation_steps", "accumulate_grad_batches", "grad_accum_steps", "gradient_accumulation"],
        Is("train", "grad_accumulation"),
    ),
    (
        &[
            "block_size",
            "max_seq_length",
            "max_seq_len",
            "seq_len",
            "seq_length",
            "context_length",
            "max_length",
            "n_ctx",
            "ctx_len",
        ],
        Is("train", "sequence_length"),
    ),
    (&["lr", "max_lr", "base_lr", "peak_lr"], Is("train", "learning_rate")),
    (&["max_grad_norm", "gradient_clip_val", "clip_grad_norm", "grad_norm_clip"], Is("train", "grad_clip")),
    (&["warmup_iters", "num_warmup_steps", "warmup"], Is("train", "warmup_steps")),
    (&["adam_epsilon", "epsilon"], Is("train", "eps")),
    (&["eval_steps", "eval_interval", "val_loss_every", "val_check_interval"], Is("train", "eval_every")),
    (&["eval_iters", "val_max_steps", "limit_val_batches"], Is("train", "eval_batches")),
    (&["save_steps", "checkpoint_every", "every_n_train_steps", "save_every"], Is("snapshot", "every_steps")),
    (&["save_total_limit", "save_top_k"], Is("retention", "keep_last")),
    (&["model_name_or_path", "model_name", "pretrained_model_name_or_path", "init_from"], Is("model", "from")),
    (&["output_dir", "out_dir", "default_root_dir", "ckpt_path", "checkpoint_dir", "save_dir"], Is("job", "store")),
    (&["run_name", "wandb_run_name"], Is("job", "name")),
    (&["random_seed", "manual_seed", "seed_everything"], Is("job", "seed")),
    (&["tokenizer_name", "tokenizer_path"], Is("data", "tokenizer")),
    (&["embd_pdrop", "resid_pdrop", "attn_pdrop", "dropout_p"], Is("model", "dropout")),
    (&["time_limit", "max_time", "walltime"], Is("session", "budget")),
    (
        &["train_file", "train_files", "dataset", "dataset_name", "train_data", "data_path", "input_file"],
        Becomes("text is a list of files, globs and folders on this machine", "data", "text", "[\"data/*.txt\"]"),
    ),
    (
        &["train_bin", "data_bin", "train_data_pattern"],
        Becomes("a file of little-endian token ids", "data", "tokens", "\"tokens.bin\""),
    ),
    (&["num_train_epochs", "max_epochs", "num_epochs", "epochs"], Becomes(EPOCHS, "train", "steps", "10000")),
    (&["warmup_ratio", "warmup_fraction"], Becomes(RATIO, "train", "warmup_steps", "50")),
    (&["min_lr", "learning_rate_decay_frac", "min_lr_rate"], Becomes(ABSOLUTE, "train", "min_learning_rate", "0.1")),
    (
        &["lr_scheduler_type", "lr_scheduler", "decay_lr", "scheduler", "lr_schedule"],
        Becomes("the schedules are cosine, linear and constant", "train", "schedule", "\"cosine\""),
    ),
    (
        &["optim", "optimizer_type", "optimizer_name"],
        Becomes("the optimisers are adamw and sgd", "train", "optimizer", "\"adamw\""),
    ),
    (&["adam_beta1", "adam_beta2", "beta1", "beta2"], Becomes(BETAS, "train", "betas", "[0.9, 0.95]")),
    (&["total_batch_size", "global_batch_size"], Becomes(GLOBAL_BATCH, "train", "grad_accumulation", "8")),
    (
        &["eval_strategy", "evaluation_strategy"],
        Becomes("evaluations come every so many steps; 0: none", "train", "eval_every", "100"),
    ),
    (
        &["save_strategy", "save_interval", "checkpoint_interval"],
        Becomes("snapshots come after a time, or `every_steps`", "snapshot", "every", "\"5m\""),
    ),
    (&["load_best_model_at_end", "metric_for_best_model"], Becomes("the best are kept", "retention", "keep_best", "1")),
    (
        &["validation_split_percentage", "val_size", "validation_split", "val_split", "test_size"],
        Becomes(PERCENT, "data", "validation", "0.05"),
    ),
    (&["logging_dir", "log_level"], Becomes("the log goes to standard error", "log", "level", "\"info\"")),
    (&["accelerator", "gpus", "use_cpu", "no_cuda"], Becomes("one device", "job", "device", "\"auto\"")),
    (
        &["fp16", "bf16", "tf32", "mixed_precision", "dtype", "torch_dtype", "amp", "half_precision_backend"],
        Becomes(PRECISION, "train", "precision", "\"bf16\""),
    ),
    (
        &[
            "n_layer",
            "n_head",
            "n_embd",
            "n_layers",
            "n_heads",
            "hidden_size",
            "num_layers",
            "vocab_size",
            "n_positions",
            "bias",
        ],
        Nothing(SHAPE),
    ),
    (&["resume_from_checkpoint", "resume", "overwrite_output_dir", "always_save_checkpoint"], Nothing(RESUMES)),
    (&["logging_steps", "log_interval", "log_every_n_steps", "logging_strategy", "log_every"], Nothing(LINES)),
    (
        &["dataloader_num_workers", "num_workers", "dataloader_pin_memory", "preprocessing_num_workers"],
        Nothing(READS_TOKENS),
    ),
    (&["push_to_hub", "hub_model_id", "hub_token"], Nothing(NO_HUB)),
    (&["report_to", "wandb", "wandb_log", "wandb_project", "logger"], Nothing(NO_TRACKER)),
    (&["deepspeed", "fsdp", "ddp", "strategy", "num_nodes", "devices", "local_rank", "ddp_backend"], Nothing(RANKS)),
    (
        &[
            "gradient_checkpointing",
            "use_checkpoint",
            "activation_checkpoint",
            "recompute_activations",
            "checkpointing",
        ],
        Is("train", "activation_checkpointing"),
    ),
    (
        &["torch_compile", "compile", "flash", "group_by_length", "remove_unused_columns"],
        Nothing("the worker has no such switch"),
    ),
    (
        &["per_device_eval_batch_size", "eval_batch_size", "val_batch_size"],
        Nothing("evaluations use batch_size; eval_batches says how many of them"),
    ),
    (&["lr_decay_iters", "lr_decay_steps"], Nothing("the schedule falls until the last of the steps")),
];

/// Sections that other job files have, and what they are here.
const SECTIONS: &[(&[&str], &str)] = &[
    (&["training", "trainer", "training_arguments", "optimizer", "optim", "scheduler", "hyperparameters"], "train"),
    (&["dataset", "datasets", "tokenizer", "datamodule", "corpus"], "data"),
    (&["checkpoint", "checkpoints", "checkpointing", "save", "saving", "snapshots"], "snapshot"),
    (&["logging", "logger", "logs"], "log"),
    (&["general", "run", "experiment", "main", "project"], "job"),
    (&["network", "architecture"], "model"),
    (&["time", "limits", "slurm"], "session"),
    (&["keep", "rotation"], "retention"),
];

fn plain(name: &str) -> String {
    name.to_ascii_lowercase().replace('-', "_")
}

/// What another trainer means by `name`.
pub(super) fn meaning(name: &str) -> Option<Meaning> {
    let name = plain(name);
    TABLE.iter().find(|(names, _)| names.contains(&name.as_str())).map(|(_, meaning)| *meaning)
}

/// What a section of another trainer's file is called here.
pub(super) fn section(name: &str) -> Option<&'static str> {
    let name = plain(name);
    SECTIONS.iter().find(|(names, _)| names.contains(&name.as_str())).map(|(_, section)| *section)
}

/// The key of a meaning, where it has one.
pub(super) fn key_of(meaning: Meaning) -> Option<&'static KeySpec> {
    match meaning {
        Is(section, key) | Becomes(_, section, key, _) => keys::find(section, key),
        Nothing(_) => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_name_stands_once_is_none_of_ours_there_and_leads_to_a_key() {
        let mut seen = BTreeSet::new();
        for (names, meaning) in TABLE {
            assert!(matches!(meaning, Nothing(_)) || key_of(*meaning).is_some(), "{names:?}");
            for name in *names {
                assert!(seen.insert(*name), "{name} stands twice");
                assert!(keys::KEYS.iter().all(|spec| spec.key != *name), "{name} is a key of ours");
            }
        }
    }
}
