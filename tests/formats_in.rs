//! What other programs keep a model in is read as they mean it, or refused by what it is.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use ckptd_core::progress::NoProgress;
use ckptd_core::snapshot::Role;
use ckptd_core::store::Store;
use ckptd_interop::export::{self, ExportFormat, ExportOptions};
use ckptd_interop::import::{self, ImportOptions};
use ckptd_interop::limits::ReadLimits;
use ckptd_interop::{check, dcp, gguf};
use ckptd_testkit::python;

/// One GPT-2 in many containers, made once for all tests.
fn sources() -> &'static Path {
    static SOURCES: OnceLock<tempfile::TempDir> = OnceLock::new();
    SOURCES
        .get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            python::run("make_formats.py", &[dir.path()]);
            dir
        })
        .path()
}

/// Imports `from` with the config of the truth, and holds every parameter against it.
fn imported(from: &Path) -> import::ImportReport {
    let store = tempfile::tempdir().unwrap();
    let options = ImportOptions { model: Some(sources().join("truth")), ..ImportOptions::default() };
    let imported = import::import(from, &store.path().join("store"), &options, &NoProgress)
        .unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    let checked = check::check(&imported.path, Some(&sources().join("truth")), 1, &NoProgress).unwrap();
    let params = checked.tensors.iter().filter(|tensor| tensor.role == Role::Param);
    assert!(params.clone().count() > 20);
    for tensor in params {
        assert_eq!(tensor.equal, Some(true), "{} {}", from.display(), tensor.name);
    }
    imported
}

fn refusal(from: &Path) -> String {
    let store = tempfile::tempdir().unwrap();
    let options = ImportOptions { model: Some(sources().join("truth")), ..ImportOptions::default() };
    import::import(from, &store.path().join("store"), &options, &NoProgress).unwrap_err().to_string()
}

#[test]
fn every_container_gives_the_same_model() {
    for name in ["dcp_model", "plain.npz", "packed.npz", "rust.ot", "models--someone--small", "variant", "llmc.bin"] {
        imported(&sources().join(name));
    }
}

#[test]
fn a_folder_of_accelerate_comes_with_its_optimizer_and_a_trainers_with_its_newest_whole_checkpoint() {
    assert_eq!(imported(&sources().join("accelerate")).step, 3);
    let trainer = imported(&sources().join("trainer"));
    assert_eq!(trainer.step, 3);
    let notes = trainer.notes.join("\n");
    assert!(notes.contains("checkpoint-3") && notes.contains("checkpoint-10 was passed over"), "{notes}");
}

#[test]
fn a_zip_archive_of_macos_is_the_model_in_it_and_what_is_passed_over_is_told() {
    let notes = imported(&sources().join("mac.zip")).notes.join("\n");
    assert!(notes.contains("__MACOSX/truth/._config.json and 2 more"), "{notes}");
}

#[test]
fn a_distributed_checkpoint_is_the_nested_dict_that_was_saved() {
    let file = dcp::open(&sources().join("dcp"), &ReadLimits::default()).unwrap();
    let value = file.value();
    assert_eq!(value.get("step").unwrap().as_int(), Some(3));
    let optimizer = value.get("optimizer").unwrap();
    let group = &optimizer.get("param_groups").unwrap().as_items().unwrap()[0];
    assert_eq!(group.get("lr").unwrap().as_float(), Some(1e-3));
    let names = group.get("params").unwrap().as_items().unwrap();
    let moments = optimizer.get("state").unwrap().get(names[0].as_str().unwrap()).unwrap();
    assert_eq!(moments.get("exp_avg").unwrap().as_tensor().unwrap().shape, [61, 12]);
}

#[test]
fn a_gguf_file_comes_back_as_it_went_and_narrow_ones_widened() {
    let work = tempfile::tempdir().unwrap();
    let options = ImportOptions::default();
    let model = import::import(&sources().join("truth"), &work.path().join("store"), &options, &NoProgress).unwrap();
    let out = work.path().join("model.gguf");
    export::export(&model.path, &out, &ExportOptions::new(ExportFormat::Gguf), &NoProgress).unwrap();
    let file = gguf::open(&out, &ReadLimits::default()).unwrap();
    assert_eq!(file.get("gpt2.context_length").unwrap().as_u64(), Some(16));
    let tensor = file.tensors.iter().find(|tensor| tensor.meta.name == "blk.0.ffn_up.weight").unwrap();
    assert_eq!(tensor.meta.shape, [48, 12]);
    imported(&out);
}

#[test]
fn what_is_not_read_is_named_with_the_command_that_helps() {
    let work = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = work.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        refusal(&path)
    };
    assert!(file("x.h5", b"\x89HDF\r\n\x1a\n").contains("HDF5"));
    assert!(file("x.tar.gz", &[0x1f, 0x8b, 8, 0, 0]).contains("tar xzf"));
    assert!(refusal(&sources().join("traced.pt")).contains("torch.jit.load"));
    let adapter = work.path().join("adapter");
    std::fs::create_dir(&adapter).unwrap();
    std::fs::write(adapter.join("adapter_config.json"), "{}").unwrap();
    assert!(refusal(&adapter).contains("merge_and_unload"));
    let deepspeed = work.path().join("zero");
    std::fs::create_dir_all(&deepspeed).unwrap();
    std::fs::write(deepspeed.join("zero_to_fp32.py"), "").unwrap();
    assert!(refusal(&deepspeed).contains("zero_to_fp32.py"));
    let folder = work.path().join("loose");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("ckpt.pt"), "").unwrap();
    assert!(refusal(&folder).contains("--from"), "{}", refusal(&folder));
}

/// Runs `ckptd import` on an adapter; what it says.
fn import_adapter(from: &Path, store: &Path, base: Option<&Path>) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ckptd"));
    command.arg("import").arg("--from").arg(from).arg(store);
    if let Some(base) = base {
        command.arg("--base").arg(base);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    if output.status.success() { Ok(said) } else { Err(said) }
}

#[test]
fn an_adapter_is_merged_into_its_base_model_as_peft_merges_it_to_the_bit() {
    let work = tempfile::tempdir().unwrap();
    for (name, base, says) in [
        ("adapter", None, "a LoRA on 5 modules"),
        ("adapter_biases", Some(sources().join("truth")), "a LoRA on 2 modules"),
        ("adapter_head", None, "not tied any more"),
    ] {
        let store = work.path().join(name);
        let said = import_adapter(&sources().join(name), &store, base.as_deref()).unwrap();
        assert!(said.contains(says), "{name}: {said}");
        let snapshot = Store::open(&store).unwrap().entries().unwrap()[0].path.clone();
        let checked = check::check(&snapshot, Some(&sources().join(format!("{name}_truth"))), 1, &NoProgress).unwrap();
        let wrong = checked.tensors.iter().find(|tensor| tensor.role == Role::Param && tensor.equal != Some(true));
        assert!(wrong.is_none() && checked.only_there.is_empty(), "{name}: {wrong:?} {:?}", checked.only_there);
        // The job goes on with the base model's folder: the merged one is gone.
        let job = std::fs::read_to_string(store.with_extension("toml")).unwrap();
        let from = job.lines().find_map(|line| line.strip_prefix("from = \"")).unwrap().trim_end_matches('"');
        assert!(work.path().join(from).join("config.json").is_file(), "{name}: {job}");
    }
    let left: Vec<_> = std::fs::read_dir(work.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 6, "{left:?}");
}

#[test]
fn an_adapter_that_says_more_than_is_merged_is_refused_by_its_field_or_tensor() {
    let work = tempfile::tempdir().unwrap();
    let (copy, store) = (work.path().join("adapter"), work.path().join("store"));
    std::fs::create_dir(&copy).unwrap();
    let config = std::fs::read_to_string(sources().join("adapter/adapter_config.json")).unwrap();
    let weights = std::fs::read(sources().join("adapter/adapter_model.safetensors")).unwrap();
    std::fs::write(copy.join("adapter_model.safetensors"), &weights).unwrap();
    let refused = |from: &str, to: &str| {
        assert!(config.contains(from), "{from}");
        std::fs::write(copy.join("adapter_config.json"), config.replacen(from, to, 1)).unwrap();
        import_adapter(&copy, &store, None).unwrap_err()
    };
    for (from, to, says) in [
        ("\"r\": 3", "\"use_dora\": true, \"r\": 3", "use_dora"),
        ("\"r\": 3", "\"use_bdlora\": {\"nblocks\": 2}, \"r\": 3", "use_bdlora"),
        ("\"LORA\"", "\"IA3\"", "peft_type: it is IA3"),
        ("\"r\": 3", "\"r\": 4", "shape"),
        ("\"wte\"]", "\"wte\", \"c_fc\"]", "no LoRA for c_fc"),
        ("\"c_attn\", ", "", "c_attn has a LoRA, and is none of the target_modules"),
        ("[\"ln_f\"]", "null", "transformer.ln_f.weight is neither of a LoRA nor"),
        ("[\"ln_f\"]", "[\"ln_f\", \"wpe\"]", "no tensor of wpe"),
    ] {
        let said = refused(from, to);
        assert!(said.contains(says) && said.contains("adapter"), "{says}: {said}");
        assert!(said.contains("merge_and_unload"), "{says}: {said}");
        assert!(!store.exists(), "{says}");
    }
    let said = import_adapter(&sources().join("adapter_biases"), &store, None).unwrap_err();
    assert!(said.contains("nowhere is not here") && said.contains("--base"), "{said}");
    let said = import_adapter(&sources().join("truth"), &store, Some(&sources().join("truth"))).unwrap_err();
    assert!(said.contains("is no adapter of PEFT"), "{said}");
    std::fs::write(copy.join("adapter_config.json"), &config).unwrap();
    std::fs::write(copy.join("adapter_model.safetensors"), &weights[..weights.len() - 4]).unwrap();
    assert!(import_adapter(&copy, &store, None).unwrap_err().contains("adapter_model.safetensors"));
}

#[test]
fn made_up_sizes_and_names_are_refused_by_the_entry() {
    let work = tempfile::tempdir().unwrap();
    let (limits, out) = (ReadLimits::default(), work.path().join("x.gguf"));
    let options = ImportOptions::default();
    let model = import::import(&sources().join("truth"), &work.path().join("store"), &options, &NoProgress).unwrap();
    export::export(&model.path, &out, &ExportOptions::new(ExportFormat::Gguf), &NoProgress).unwrap();
    let whole = std::fs::read(&out).unwrap();
    std::fs::write(&out, &whole[..whole.len() - 33]).unwrap();
    assert!(gguf::open(&out, &limits).err().unwrap().to_string().contains("beyond the end"));
    let few = ReadLimits { tensors: 9, ..limits.clone() };
    std::fs::write(&out, &whole).unwrap();
    assert!(gguf::open(&out, &few).err().unwrap().to_string().contains("at most 9"));
    let mut longer = whole;
    longer[24] = 0xff;
    std::fs::write(&out, &longer).unwrap();
    assert!(gguf::open(&out, &limits).is_err(), "a key that is longer than it is");

    // A folder whose index names a file in another folder, or more than its file has.
    let copy = work.path().join("dcp");
    std::fs::create_dir(&copy).unwrap();
    let metadata = std::fs::read(sources().join("dcp/.metadata")).unwrap();
    let data = std::fs::read(sources().join("dcp/__0_0.distcp")).unwrap();
    let replaced = |from: &[u8], to: &[u8]| {
        let mut bytes = metadata.clone();
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to);
        std::fs::write(copy.join(".metadata"), bytes).unwrap();
        dcp::open(&copy, &limits).err().unwrap().to_string()
    };
    std::fs::write(copy.join("__0_0.distcp"), &data).unwrap();
    let elsewhere = replaced(b"__0_0.distcp", b"sub/0.distcp");
    assert!(elsewhere.contains("not the plain name"), "{elsewhere}");
    std::fs::write(copy.join("__0_0.distcp"), &data[..data.len() - 1]).unwrap();
    let cut = replaced(b"__0_0.distcp", b"__0_0.distcp");
    assert!(cut.contains("outside its file"), "{cut}");
    let few = ReadLimits { tensors: 5, ..limits };
    assert!(dcp::open(&copy, &few).err().unwrap().to_string().contains("at most 5"));
}
