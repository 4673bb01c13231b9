//! What training scripts of the field write is taken rightly, every moment at its parameter, or refused by name with a
//! way out that works.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ckptd_core::progress::NoProgress;
use ckptd_core::store::SnapshotReader;
use ckptd_interop::check;
use ckptd_interop::export::{self, ExportFormat, ExportOptions};
use ckptd_interop::import::{self, FreshOptimizer, ImportOptions, ImportReport};
use ckptd_testkit::python;
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    refused: bool,
    says: Vec<String>,
    step: u64,
    truth: Option<String>,
    #[serde(default)]
    own_config: bool,
    #[serde(default)]
    asked: Option<String>,
}

/// The sources, made once for all tests.
fn sources() -> (&'static Path, &'static BTreeMap<String, Case>) {
    static SOURCES: OnceLock<(tempfile::TempDir, BTreeMap<String, Case>)> = OnceLock::new();
    let (dir, cases) = SOURCES.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        python::run("make_sources.py", &[dir.path()]);
        let cases = serde_json::from_slice(&std::fs::read(dir.path().join("cases.json")).unwrap()).unwrap();
        (dir, cases)
    });
    (dir.path(), cases)
}

fn options(case: &Case) -> ImportOptions {
    ImportOptions {
        model: (!case.own_config).then(|| sources().0.join("config")),
        optimizer: case.asked.as_ref().map(|_| FreshOptimizer::AdamW),
        ..ImportOptions::default()
    }
}

fn import(name: &str, options: &ImportOptions, store: &Path) -> Result<ImportReport, String> {
    import::import(&sources().0.join(name), store, options, &NoProgress).map_err(|e| e.to_string())
}

#[test]
fn what_is_taken_has_every_value_at_its_place_and_its_step() {
    let work = tempfile::tempdir().unwrap();
    for (name, case) in sources().1.iter().filter(|(_, case)| !case.refused) {
        let imported = import(name, &options(case), &work.path().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(imported.step, case.step, "{name}: {:?}", imported.notes);
        for text in &case.says {
            assert!(imported.notes.iter().any(|note| note.contains(text)), "{name}: {text:?} in {:?}", imported.notes);
        }
        let truth = sources().0.join(case.truth.as_ref().unwrap());
        let checked = check::check(&imported.path, Some(&truth), 1, &NoProgress).unwrap();
        let wrong = checked.tensors.iter().find(|tensor| tensor.equal == Some(false));
        assert!(wrong.is_none(), "{name}: {wrong:?}");
        assert_eq!(checked.only_there, Vec::<String>::new(), "{name}");
        if case.step > 0 {
            assert_eq!(checked.only_here, Vec::<String>::new(), "{name}");
        }
        let reader = SnapshotReader::open(&imported.path).unwrap();
        assert!(reader.manifest().train.settings.is_empty(), "{name}: an import names no settings");
    }
}

#[test]
fn what_is_refused_is_named_and_its_weights_can_be_had_where_it_says_so() {
    let work = tempfile::tempdir().unwrap();
    for (name, case) in sources().1.iter().filter(|(_, case)| case.refused) {
        let store = work.path().join(name);
        let refusal = import(name, &options(case), &store).expect_err(name);
        for text in &case.says {
            assert!(refusal.contains(text), "{name}: {text:?} in {refusal}");
        }
        assert!(refusal.contains(name), "{name} is not named: {refusal}");
        if case.says.iter().any(|text| text == "--weights-only") {
            assert!(refusal.contains(&format!("--weights-only{}", if case.own_config { " " } else { " --model " })));
            let weights = ImportOptions { weights_only: true, ..options(case) };
            let imported = import(name, &weights, &store).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(imported.step, 0, "{name}");
        }
    }
}

#[test]
fn steps_of_two_files_are_taken_where_the_user_says_so() {
    let work = tempfile::tempdir().unwrap();
    let options = ImportOptions { mixed_steps: true, ..ImportOptions::default() };
    let imported = import("mixed", &options, &work.path().join("store")).unwrap();
    assert_eq!(imported.step, 3);
    assert!(imported.notes.iter().any(|note| note.contains("at step 7, its optimiser at 3")), "{:?}", imported.notes);
}

/// Trainers with several schedules and optimisers that left after 5 of 15 steps.
fn trainers() -> PathBuf {
    sources().0.join("trainers")
}

const KINDS: [&str; 4] = ["linear", "cosine", "restarts", "sgd"];

#[test]
fn a_trainer_that_comes_back_goes_on_as_if_it_had_never_left() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("exports");
    std::fs::create_dir(&out).unwrap();
    for kind in KINDS {
        let store = work.path().join(kind);
        let from = trainers().join(kind).join("checkpoint-5");
        let imported = import::import(&from, &store, &ImportOptions::default(), &NoProgress).unwrap();
        let options = ExportOptions { with_optimizer: true, ..ExportOptions::new(ExportFormat::Hf) };
        export::export(&imported.path, &out.join(kind), &options, &NoProgress).unwrap();
        let again = work.path().join(format!("{kind}-again"));
        let again = import::import(&out.join(kind), &again, &ImportOptions::default(), &NoProgress).unwrap();
        assert!(again.exact && again.root == imported.root, "{kind}");
    }
    let report = python::run("trainer_returns.py", &[&trainers(), &out]);
    assert_eq!(report.lines().filter(|line| line.starts_with("returned")).count(), KINDS.len(), "{report}");
}

#[test]
fn an_imported_trainer_goes_on_by_the_job_file_that_was_written() {
    let work = tempfile::tempdir().unwrap();
    let ckptd = |arguments: &[&Path]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_ckptd")).args(arguments).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    };
    let ids: Vec<u8> = (0..4000u32).flat_map(|n| (n.wrapping_mul(7919) as u16 % 61).to_le_bytes()).collect();
    std::fs::write(work.path().join("ids.bin"), ids).unwrap();
    let from = trainers().join("cosine/checkpoint-5");
    let store = work.path().join("cosine");
    let (code, said) = ckptd(&["import".as_ref(), "--from".as_ref(), &from, &store]);
    assert!(code == Some(0) && said.contains("which lacks one thing"), "{said}");
    let job = work.path().join("cosine.toml");
    let text = std::fs::read_to_string(&job).unwrap();
    let found = text.replace("# text = [\"data/*.txt\"]", "tokens = \"ids.bin\"");
    std::fs::write(&job, format!("{found}eval_every = 0\n")).unwrap();
    let (code, said) = ckptd(&["run".as_ref(), &job]);
    assert!(code == Some(0) && said.contains("resuming from step 5 of 16"), "{said}");
    // Nothing of the source's settings is another one here.
    assert!(!said.contains("in the source") && !said.contains("was to be"), "{said}");
}

#[test]
fn an_import_tells_the_schedule_where_it_is_known_and_else_asks() {
    let work = tempfile::tempdir().unwrap();
    let notes = |kind: &str| {
        let from = trainers().join(kind).join("checkpoint-5");
        let store = work.path().join(kind);
        import::import(&from, &store, &ImportOptions::default(), &NoProgress).unwrap().notes.join("\n")
    };
    let linear = notes("linear");
    assert!(linear.contains("learning_rate = 0.001, betas = [0.9, 0.999]"), "{linear}");
    assert!(
        linear.contains("schedule = \"linear\", steps = 15, warmup_steps = 2, min_learning_rate = 0.07"),
        "{linear}"
    );
    let cosine = notes("cosine");
    assert!(cosine.contains("betas = [0.8, 0.99]") && cosine.contains("grad_accumulation = 2"), "{cosine}");
    let restarts = notes("restarts");
    assert!(restarts.contains("\"cosine_with_restarts\", which ckptd does not have"), "{restarts}");
}
