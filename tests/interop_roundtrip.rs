//! Whatever a snapshot is exported to, it comes back as itself; PyTorch, transformers and its Trainer load it as it is.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use ckptd_core::config::{Config, ScheduleKind, TrainSection};
use ckptd_core::dtype::DType;
use ckptd_core::progress::NoProgress;
use ckptd_core::snapshot::Role;
use ckptd_core::store::{SnapshotReader, Store, StoreLock};
use ckptd_interop::export::{self, ExportFormat, ExportOptions};
use ckptd_interop::import::{self, FreshOptimizer, ImportOptions};
use ckptd_interop::limits::ReadLimits;
use ckptd_interop::output::OverwriteRule;
use ckptd_interop::{bundle, check};
use ckptd_testkit::python;

/// A Trainer run made by Python once for all tests: `checkpoint-3`, `untied`, `half`, `losses.json`.
fn trainer_run() -> &'static Path {
    static RUN: OnceLock<tempfile::TempDir> = OnceLock::new();
    RUN.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        python::run("make_trainer.py", &[dir.path()]);
        dir
    })
    .path()
}

fn import(from: &Path, store: &Path) -> import::ImportReport {
    import::import(from, store, &ImportOptions::default(), &NoProgress).unwrap()
}

fn export(snapshot: &Path, out: &Path, options: ExportOptions) -> export::ExportReport {
    export::export(snapshot, out, &options, &NoProgress).unwrap()
}

/// The settings of `make_trainer.py` as a job's.
fn train() -> TrainSection {
    TrainSection {
        steps: 6,
        learning_rate: 1e-3,
        schedule: ScheduleKind::Linear,
        warmup_steps: 0,
        min_learning_rate: 1.0 / 6.0,
        weight_decay: 0.1,
        betas: [0.9, 0.95],
        batch_size: 4,
        ..TrainSection::default()
    }
}

fn full(format: ExportFormat) -> ExportOptions {
    ExportOptions {
        with_optimizer: true,
        job: Some(Config { train: train(), ..Config::default() }),
        ..ExportOptions::new(format)
    }
}

/// Every tensor of a snapshot: role and name to type, shape and hash.
fn tensors(snapshot: &Path) -> BTreeMap<(Role, String), (DType, Vec<u64>, String)> {
    let reader = SnapshotReader::open(snapshot).unwrap();
    let tensors = reader.manifest().tensors.iter();
    tensors
        .map(|t| ((t.meta.role, t.meta.name.clone()), (t.meta.dtype, t.meta.shape.clone(), t.hash.clone())))
        .collect()
}

#[test]
fn a_trainer_checkpoint_is_imported_whole_and_every_export_of_it_loads() {
    let (run, work) = (trainer_run(), tempfile::tempdir().unwrap());
    let checkpoint = run.join("checkpoint-3");
    let imported = import(&checkpoint, &work.path().join("store"));
    assert_eq!((imported.step, imported.exact), (3, false));
    assert!(
        imported.notes.iter().any(|note| note.contains("learning_rate = 0.001, betas = [0.9, 0.95]")),
        "{:?}",
        imported.notes
    );
    let kinds: Vec<Role> = tensors(&imported.path).keys().map(|(role, _)| *role).collect();
    let count = |role| kinds.iter().filter(|&&kind| kind == role).count();
    assert_eq!((count(Role::Param), count(Role::ExpAvg), count(Role::ExpAvgSq)), (40, 40, 40));

    let out = work.path().join("exports");
    std::fs::create_dir(&out).unwrap();
    let plain = ExportOptions::new;
    let half = |format, dtype| ExportOptions { dtype: Some(dtype), ..plain(format) };
    let at = |name: &str| out.join(name);
    export(&imported.path, &at("hf"), plain(ExportFormat::Hf));
    export(&imported.path, &at("hf_sharded"), ExportOptions { max_shard_bytes: 20_000, ..plain(ExportFormat::Hf) });
    export(&imported.path, &at("hf_full"), full(ExportFormat::Hf));
    export(&imported.path, &at("hf_bf16"), half(ExportFormat::Hf, DType::BF16));
    export(&imported.path, &at("hf_f16"), half(ExportFormat::Hf, DType::F16));
    export(&imported.path, &at("model.pt"), plain(ExportFormat::Pt));
    export(&imported.path, &at("model_bf16.pt"), half(ExportFormat::Pt, DType::BF16));
    export(&imported.path, &at("full.pt"), full(ExportFormat::Pt));
    export(&imported.path, &at("model.safetensors"), plain(ExportFormat::Safetensors));
    export(&imported.path, &at("deep/dcp"), full(ExportFormat::Dcp));
    export(&imported.path, &at("dcp_model"), plain(ExportFormat::Dcp));
    export(&imported.path, &at("ckpt.pt"), full(ExportFormat::Nanogpt));
    let exported = export(&imported.path, &at("trainer"), full(ExportFormat::Trainer));
    assert_eq!(exported.path, at("trainer").join("checkpoint-3"));
    assert_eq!(contents(&exported.path), contents(&at("hf_full")));
    for (format, file, folder) in
        [(ExportFormat::Zip, "b.zip", "unpacked_zip"), (ExportFormat::TarZst, "b.tar.zst", "unpacked_tar")]
    {
        let exported = export(&imported.path, &at(file), full(format));
        let (limits, overwrite) = (ReadLimits::default(), OverwriteRule::Refuse);
        let unpacked = bundle::unpack(&at(file), &at(folder), overwrite, &limits, &NoProgress).unwrap();
        assert!(unpacked.verified);
        assert_eq!((unpacked.raw_bytes, unpacked.bytes), (exported.raw_bytes, exported.bytes));
        assert!(exported.r < 1.0, "{}", exported.r);
        assert_eq!(contents(&at(folder)), contents(&at("hf_full")), "F' is F, byte for byte");
    }
    let report = python::run("verify_exports.py", &[run, &out]);
    assert_eq!(
        report.lines().filter(|line| line.starts_with("loads") || line.starts_with("optimizer")).count(),
        14,
        "{report}"
    );
    assert_eq!(report.lines().filter(|line| line.starts_with("step ")).count(), 3, "{report}");
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

#[test]
fn every_round_trip_has_epsilon_zero_and_with_the_optimizer_the_same_root() {
    let (run, work) = (trainer_run(), tempfile::tempdir().unwrap());
    for source in ["checkpoint-3", "untied"] {
        let dir = work.path().join(source);
        std::fs::create_dir(&dir).unwrap();
        let original = import(&run.join(source), &dir.join("store"));
        let optimizer = [true, false];
        for (format, name) in FORMATS {
            for with_optimizer in optimizer {
                let out = dir.join(format!("{with_optimizer}.{name}"));
                export(&original.path, &out, ExportOptions { with_optimizer, ..full(format) });
                let again = import(&out, &dir.join(format!("store-{with_optimizer}-{name}")));
                let exact = with_optimizer || matches!(format, ExportFormat::Zip | ExportFormat::TarZst);
                assert_eq!(again.exact, exact, "{source} {name}");
                if exact {
                    assert_eq!(again.root, original.root, "{source} {name}");
                    let (a, b) =
                        (SnapshotReader::open(&original.path).unwrap(), SnapshotReader::open(&again.path).unwrap());
                    assert_eq!((&a.manifest().run_id, a.manifest().seq), (&b.manifest().run_id, b.manifest().seq));
                }
                let checked = check::check(&again.path, Some(&original.path), 2, &NoProgress).unwrap();
                let of_model = checked.tensors.iter().filter(|tensor| exact || tensor.role == Role::Param);
                for tensor in of_model {
                    assert_eq!(
                        (tensor.equal, tensor.epsilon),
                        (Some(true), Some(0.0)),
                        "{source} {name} {}",
                        tensor.name
                    );
                }
                let against_file = check::check(&original.path, Some(&out), 2, &NoProgress).unwrap();
                assert_eq!((against_file.equal, against_file.epsilon), (Some(true), Some(0.0)), "{source} {name}");
            }
        }
    }
}

const FORMATS: [(ExportFormat, &str); 5] = [
    (ExportFormat::Hf, "hf"),
    (ExportFormat::Pt, "pt"),
    (ExportFormat::Safetensors, "safetensors"),
    (ExportFormat::Zip, "zip"),
    (ExportFormat::TarZst, "tar.zst"),
];

#[test]
fn a_snapshot_file_of_another_store_is_imported_as_itself() {
    let (run, work) = (trainer_run(), tempfile::tempdir().unwrap());
    let original = import(&run.join("checkpoint-3"), &work.path().join("a"));
    let moved = work.path().join("moved.ckpt");
    std::fs::copy(&original.path, &moved).unwrap();
    let again = import(&moved, &work.path().join("b"));
    assert_eq!((again.exact, &again.root), (true, &original.root));
    assert!(Store::open(&work.path().join("b")).unwrap().find("latest").is_ok());
}

#[test]
fn weights_without_an_optimizer_start_afresh_at_step_zero() {
    let (run, work) = (trainer_run(), tempfile::tempdir().unwrap());
    let model = import(&run.join("checkpoint-3"), &work.path().join("model"));
    let out = work.path().join("hf");
    export(&model.path, &out, ExportOptions::new(ExportFormat::Hf));
    for (fresh, kinds) in [(FreshOptimizer::AdamW, 3), (FreshOptimizer::SgdMomentum, 2), (FreshOptimizer::Sgd, 1)] {
        let store = work.path().join(format!("{fresh:?}"));
        let options = ImportOptions { optimizer: Some(fresh), ..ImportOptions::default() };
        let imported = import::import(&out, &store, &options, &NoProgress).unwrap();
        let tensors = tensors(&imported.path);
        assert_eq!(tensors.len(), 40 * kinds);
        assert_eq!(imported.step, 0);
        let zero = |name: &str| tensors.iter().filter(|((role, n), _)| *role != Role::Param && n == name).count();
        assert_eq!(zero("transformer.wte.weight"), kinds - 1);
    }
}

#[test]
fn half_precision_weights_become_float32_exactly_and_go_back_as_they_were() {
    let (run, work) = (trainer_run(), tempfile::tempdir().unwrap());
    let imported = import(&run.join("half"), &work.path().join("store"));
    assert!(tensors(&imported.path).values().all(|(dtype, ..)| *dtype == DType::F32));
    let checked = check::check(&imported.path, Some(&run.join("half")), 2, &NoProgress).unwrap();
    assert_eq!((checked.epsilon, checked.equal), (Some(0.0), Some(true)));
    let out = work.path().join("hf");
    export(&imported.path, &out, ExportOptions { dtype: Some(DType::BF16), ..ExportOptions::new(ExportFormat::Hf) });
    let weights = |dir: &Path| {
        let tensors = ckptd_interop::hf::weights(dir, &ReadLimits::default()).unwrap();
        tensors.iter().map(|t| (t.meta.clone(), (*t.bytes).as_ref().to_vec())).collect::<Vec<_>>()
    };
    assert_eq!(weights(&out), weights(&run.join("half")));
    assert!(!out.join("ckptd.json").exists(), "rounded weights must not claim to be the snapshot");
}

#[test]
fn an_embedding_of_ones_is_seen_and_survives_every_format() {
    let (run, work) = (trainer_run(), tempfile::tempdir().unwrap());
    let original = import(&run.join("checkpoint-3"), &work.path().join("store"));
    let ones = ones(&original.path, work.path());
    let checked = check::check(&ones, Some(&original.path), 2, &NoProgress).unwrap();
    let embedding = checked.embedding.clone().unwrap();
    assert!(embedding.all_ones && embedding.mean == 1.0 && embedding.std == 0.0);
    assert!(embedding.distance.unwrap() > 0.0 && checked.epsilon == embedding.distance);
    assert!(checked.is_sound() && checked.equal == Some(false));
    for (format, name) in FORMATS {
        let out = work.path().join(format!("ones.{name}"));
        export(&ones, &out, full(format));
        let again = import(&out, &work.path().join(format!("ones-{name}")));
        let checked = check::check(&again.path, Some(&ones), 2, &NoProgress).unwrap();
        assert!(checked.embedding.as_ref().unwrap().all_ones && checked.equal == Some(true), "{name}");
        assert_eq!(checked.epsilon, Some(0.0));
    }
}

/// The snapshot with its embedding set to ones, in a store of its own.
fn ones(snapshot: &Path, work: &Path) -> PathBuf {
    let mut state = SnapshotReader::open(snapshot).unwrap().read_snapshot().unwrap();
    let embedding = state.tensors.iter_mut().find(|t| t.meta.name == "transformer.wte.weight").unwrap();
    let elements = embedding.meta.elements().unwrap() as usize;
    embedding.bytes = std::sync::Arc::new(1f32.to_le_bytes().repeat(elements));
    let store = Store::create(&work.join("ones-store")).unwrap();
    let options = ckptd_core::store::CommitOptions::new("0123456789abcdef0123456789abcdef", 1);
    ckptd_core::store::commit(&store, &StoreLock::inherited(), state, &options).unwrap().path
}

#[test]
fn a_changed_export_is_refused_by_the_name_of_the_changed_tensor() {
    let (run, work) = (trainer_run(), tempfile::tempdir().unwrap());
    let original = import(&run.join("checkpoint-3"), &work.path().join("store"));
    for with_optimizer in [true, false] {
        let out = work.path().join(format!("hf-{with_optimizer}"));
        export(&original.path, &out, ExportOptions { with_optimizer, ..full(ExportFormat::Hf) });
        let weights = out.join("model.safetensors");
        let mut bytes = std::fs::read(&weights).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&weights, bytes).unwrap();
        let store = work.path().join("refused");
        let refusal = import::import(&out, &store, &ImportOptions::default(), &NoProgress).unwrap_err().to_string();
        assert!(refusal.contains("was changed since the export"), "{refusal}");
        assert!(!store.exists(), "nothing is left of a store that was made for nothing");
        std::fs::remove_file(out.join("ckptd.json")).unwrap();
        import(&out, &work.path().join(format!("as-it-is-{with_optimizer}")));
    }
}

#[test]
fn an_import_into_a_store_that_is_in_use_is_refused() {
    let (run, work) = (trainer_run(), tempfile::tempdir().unwrap());
    let store = work.path().join("store");
    import(&run.join("untied"), &store);
    let refusal = import::import(&run.join("untied"), &store, &ImportOptions::default(), &NoProgress).unwrap_err();
    assert!(refusal.to_string().contains("holds snapshots already"), "{refusal}");
    assert_eq!(Store::open(&store).unwrap().entries().unwrap().len(), 1);
}

#[test]
fn the_modes_of_what_is_exported_follow_the_umask() {
    let (run, work) = (trainer_run(), tempfile::tempdir().unwrap());
    let store = work.path().join("store");
    import(&run.join("checkpoint-3"), &store);
    for (umask, file, folder) in [(0o027, 0o640, 0o750), (0o002, 0o664, 0o775)] {
        for format in ["hf", "pt", "safetensors", "trainer", "dcp", "gguf", "nanogpt", "zip", "tar.zst"] {
            let out = work.path().join(format!("{umask:o}")).join(format);
            let line = format!("umask {umask:o}; exec \"$0\" export \"$1\" latest --format {format} \"$2\"");
            let program = env!("CARGO_BIN_EXE_ckptd");
            let done = Command::new("sh").args(["-c", &line, program]).arg(&store).arg(&out).output().unwrap();
            assert!(done.status.success(), "{format}: {}", String::from_utf8_lossy(&done.stderr));
            let mut found = vec![out];
            while let Some(path) = found.pop() {
                let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
                assert_eq!(mode, if path.is_dir() { folder } else { file }, "{}: {mode:o}", path.display());
                if path.is_dir() {
                    found.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                }
            }
        }
    }
}
