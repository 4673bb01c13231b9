//! `[model] from` and `ckptd import` take a GPT-2's weights under the same names, and train to the same root from them.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::path::Path;
use std::process::Command;

use ckptd_core::dtype::DType;
use ckptd_core::ids::StateRoot;
use ckptd_core::progress::NoProgress;
use ckptd_core::store::{SnapshotReader, Store};
use ckptd_gpt2::gpt2::Gpt2Config;
use ckptd_interop::import::{self, ImportOptions};
use ckptd_interop::names;
use ckptd_interop::safetensors::{self, TensorSpec};

const JOB: &str = r#"
[job]
store = "store"
threads = 1
[model]
from = "model"
[data]
tokens = "../tokens.bin"
validation = 0.0
[train]
steps = 2
batch_size = 2
sequence_length = 8
eval_every = 0
"#;

fn config() -> Gpt2Config {
    let shape =
        Gpt2Config { vocab_size: 61, n_positions: 16, n_embd: 8, n_layer: 2, n_head: 2, ..Gpt2Config::default() };
    shape.with_dropout(0.0)
}

/// Lays a model folder whose weights have the names that `rename` makes of the model's own. With `extras` there are
/// also the causal masks of older versions, and the tied head.
fn lay_model(folder: &Path, rename: &dyn Fn(&str) -> String, extras: bool) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join(names::CONFIG), config().to_json()).unwrap();
    let value = |tensor: usize, i: u64| (((tensor as u64 * 31 + i * 17) % 101) as f32 - 50.0) / 500.0;
    let mut tensors: Vec<(TensorSpec, Vec<u8>)> = Vec::new();
    for (number, meta) in config().parameters().into_iter().enumerate() {
        let bytes = (0..meta.elements().unwrap()).flat_map(|i| value(number, i).to_le_bytes()).collect();
        tensors.push((TensorSpec { name: rename(&meta.name), dtype: DType::F32, shape: meta.shape }, bytes));
    }
    if extras {
        let head = TensorSpec { name: rename("lm_head.weight"), ..tensors[0].0.clone() };
        tensors.push((head, tensors[0].1.clone()));
        for layer in 0..2 {
            for (mask, shape) in [("attn.bias", vec![1, 1, 16, 16]), ("attn.masked_bias", vec![])] {
                let name = rename(&format!("transformer.h.{layer}.{mask}"));
                let mask = TensorSpec { name, dtype: DType::U8, shape };
                let bytes = vec![1; mask.bytes() as usize];
                tensors.push((mask, bytes));
            }
        }
    }
    let (specs, contents): (Vec<TensorSpec>, Vec<Vec<u8>>) = tensors.into_iter().unzip();
    let path = folder.join(names::WEIGHTS);
    let content = |order: &[usize], take: &mut dyn FnMut(usize, &[u8]) -> ckptd_core::Result<()>| {
        order.iter().try_for_each(|&i| take(i, &contents[i]))
    };
    let file = File::create_new(&path).unwrap();
    safetensors::write(&file, &path, &specs, &[("format", "pt".into())], content, &NoProgress).unwrap();
}

/// Trains the job in `folder` to its end; returns the root of its last snapshot.
fn train(folder: &Path) -> StateRoot {
    let job = folder.join("job.toml");
    std::fs::write(&job, JOB).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_ckptd-gpt2")).arg("--config").arg(&job).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", folder.display());
    let last = Store::open(&folder.join("store")).unwrap().find("2").unwrap();
    SnapshotReader::open(&last.path).unwrap().manifest().root.clone()
}

#[test]
fn model_from_and_import_accept_the_same_names() {
    let work = tempfile::tempdir().unwrap();
    let tokens: Vec<u8> = (0u32..600).flat_map(|i| (((i * i / 7 + i % 11 * 5) % 61) as u16).to_le_bytes()).collect();
    std::fs::write(work.path().join("tokens.bin"), tokens).unwrap();
    let bare = |name: &str| name.strip_prefix("transformer.").unwrap_or(name).to_owned();
    type Naming<'a> = (&'a str, bool, &'a dyn Fn(&str) -> String);
    let namings: [Naming; 6] = [
        ("as_they_are", false, &str::to_owned),
        ("bare", true, &bare),
        ("module", true, &|name| format!("module.{name}")),
        ("compiled", true, &|name| format!("_orig_mod.{name}")),
        ("module_bare", true, &|name| format!("module.{}", bare(name))),
        ("both", false, &|name| format!("module._orig_mod.{name}")),
    ];
    let mut roots = Vec::new();
    for (name, extras, rename) in namings {
        let [from, imported] = ["from", "import"].map(|way| work.path().join(format!("{name}_{way}")));
        lay_model(&from.join("model"), rename, extras);
        roots.push((train(&from), from));
        let model = imported.join("model");
        lay_model(&model, rename, extras);
        import::import(&model, &imported.join("store"), &ImportOptions::default(), &NoProgress).unwrap();
        roots.push((train(&imported), imported));
    }
    for (root, folder) in &roots {
        assert_eq!(*root, roots[0].0, "{}", folder.display());
    }
}
