//! The names of what an export writes and an import reads: files of a folder, keys of a header or a dict.
//!
//! Invariant: each is spelled here and nowhere else; names with a number or another name in them are built and parsed
//! here. Deliberately not here: the names of a model's tensors (`gpt2_names`).

use std::path::Path;

use ckptd_core::snapshot::Role;

/// The model's config, as transformers writes it.
pub const CONFIG: &str = "config.json";
/// The settings of generation, as transformers writes them.
pub const GENERATION: &str = "generation_config.json";
/// The tokenizer in one file, as `tokenizers` writes it.
pub const TOKENIZER: &str = "tokenizer.json";
/// All weights in one file.
pub const WEIGHTS: &str = "model.safetensors";
/// Which shard holds which weight.
pub const WEIGHTS_INDEX: &str = "model.safetensors.index.json";
/// All weights in one `.pt` file.
pub const TORCH_WEIGHTS: &str = "pytorch_model.bin";
/// Which shard holds which weight, of shards that are `.pt` files.
pub const TORCH_WEIGHTS_INDEX: &str = "pytorch_model.bin.index.json";

/// What an adapter of PEFT says of itself.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// Its tensors.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// Its tensors in one `.pt` file.
pub const TORCH_ADAPTER_WEIGHTS: &str = "adapter_model.bin";

/// What makes a tokenizer, and the settings of generation: the files that travel with a model besides its config.
pub const COMPANIONS: [&str; 9] = [
    GENERATION,
    TOKENIZER,
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "preprocessor_config.json",
];

/// The optimiser's state, as transformers' Trainer saves it.
pub const OPTIMIZER: &str = "optimizer.pt";
/// The optimiser's state, as accelerate's `save_state` writes it.
pub const ACCELERATE_OPTIMIZER: &str = "optimizer.bin";
/// The schedule's state beside it.
pub const ACCELERATE_SCHEDULER: &str = "scheduler.bin";
/// The schedule's state, as Trainer saves it.
pub const SCHEDULER: &str = "scheduler.pt";
/// Trainer's own state: step, metrics, settings.
pub const TRAINER_STATE: &str = "trainer_state.json";
/// The settings of a Trainer, a pickle of an object.
pub const TRAINING_ARGS: &str = "training_args.bin";

/// The job that the state belongs to.
pub const JOB: &str = "job.toml";
/// The tokens that the job trains on.
pub const TOKENS: &str = "tokens.bin";
/// Says which text the tokens were made of; the worker reads it beside any token file.
pub const TOKENS_ORIGIN: &str = "tokens.bin.json";

/// What happened in the training's sessions; see ckptd-history.
pub const HISTORY: &str = "history.bin";

/// What a folder cannot say of a training otherwise; see `export_record`.
pub const RECORD: &str = "ckptd.json";
/// The files of an exported folder that has no export record: rounded weights, other formats.
pub const FILES_RECORD: &str = "ckptd-files.json";
/// What a source of another program says of its training; see `source_record`.
pub const SOURCE_RECORD: &str = "ckptd-source.json";
/// Which release wrote the folder, and of which snapshot.
pub const VERSION: &str = "version.txt";

/// The key of the export record in a header's metadata or in a dict.
pub const RECORD_KEY: &str = "ckptd";
/// The key of the text of the source's record in a header's metadata or in a dict.
pub const SOURCE_KEY: &str = "ckptd_source";
/// The key of the text of config.json in a header's metadata or in a dict.
pub const CONFIG_KEY: &str = "config";
/// Before `<moment>.<parameter>`.
const MOMENT_PREFIX: &str = "optimizer.";
/// The end of the name of every safetensors file.
const SAFETENSORS_END: &str = ".safetensors";

/// Moments that PyTorch's optimisers keep, in the order of their state dicts.
pub const MOMENTS: [Role; 3] = [Role::ExpAvg, Role::ExpAvgSq, Role::MomentumBuffer];

/// The file of weights number `number`, from 1, of `count`; a single one has the plain name.
pub fn weights_file(number: usize, count: usize) -> String {
    if count == 1 { WEIGHTS.to_owned() } else { format!("model-{number:05}-of-{count:05}{SAFETENSORS_END}") }
}

/// The step of a folder that has the name of one of Trainer's checkpoints, `checkpoint-<step>`.
pub fn checkpoint_step(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix("checkpoint-")?.parse().ok()
}

/// Whether `name` is that of a safetensors file.
pub fn is_safetensors(name: &str) -> bool {
    name.ends_with(SAFETENSORS_END)
}

/// Whether an export writes a file of this name itself, so that no snapshot can carry one.
pub fn is_reserved(name: &str) -> bool {
    const WRITTEN: [&str; 11] = [
        WEIGHTS_INDEX,
        VERSION,
        RECORD,
        FILES_RECORD,
        OPTIMIZER,
        SCHEDULER,
        TRAINER_STATE,
        JOB,
        TOKENS,
        TOKENS_ORIGIN,
        HISTORY,
    ];
    is_safetensors(name) || WRITTEN.contains(&name)
}

/// Under which name a safetensors file holds a moment of a parameter.
pub fn moment(role: Role, parameter: &str) -> String {
    format!("{MOMENT_PREFIX}{role}.{parameter}")
}

/// The moment and the parameter of a name that [`moment`] has built.
pub fn parse_moment(name: &str) -> Option<(Role, &str)> {
    let (role, parameter) = name.strip_prefix(MOMENT_PREFIX)?.split_once('.')?;
    Some((MOMENTS.into_iter().find(|known| known.name() == role)?, parameter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moments_name_says_which_moment_of_which_parameter_it_is() {
        for role in MOMENTS {
            assert_eq!(
                parse_moment(&moment(role, "transformer.h.0.ln_1.bias")),
                Some((role, "transformer.h.0.ln_1.bias"))
            );
        }
        assert_eq!(parse_moment("optimizer.param.wte"), None);
        assert_eq!(parse_moment("transformer.wte.weight"), None);
    }

    #[test]
    fn no_snapshot_carries_what_an_export_writes() {
        for written in [weights_file(1, 1), weights_file(2, 30), RECORD.into(), TOKENS_ORIGIN.into()] {
            assert!(is_reserved(&written), "{written}");
        }
        assert_eq!(weights_file(2, 30), "model-00002-of-00030.safetensors");
        assert!(COMPANIONS.iter().chain([&CONFIG]).all(|name| !is_reserved(name)));
    }
}
