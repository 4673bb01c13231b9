//! What PyTorch, transformers and safetensors write is read as they mean it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use ckptd_core::snapshot::Tensor;
use ckptd_interop::limits::ReadLimits;
use ckptd_interop::torch_pt::{PtFile, PtValue};
use ckptd_interop::{hf, safetensors};
use ckptd_testkit::python;

type Expected = BTreeMap<String, BTreeMap<String, (String, Vec<u64>, String)>>;

/// The files, made once for all tests, and the truth about them.
fn inputs() -> (&'static Path, &'static Expected) {
    static INPUTS: OnceLock<(tempfile::TempDir, Expected)> = OnceLock::new();
    let (dir, expected) = INPUTS.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        python::run("make_inputs.py", &[dir.path()]);
        let expected = serde_json::from_slice(&std::fs::read(dir.path().join("expected.json")).unwrap()).unwrap();
        (dir, expected)
    });
    (dir.path(), expected)
}

fn assert_equal(tensors: &[Tensor], file: &str) {
    let read: BTreeMap<String, (String, Vec<u64>, String)> = tensors
        .iter()
        .map(|tensor| {
            let bytes: &[u8] = (*tensor.bytes).as_ref();
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            (tensor.meta.name.clone(), (tensor.meta.dtype.to_string(), tensor.meta.shape.clone(), hex))
        })
        .collect();
    assert_eq!(read, inputs().1[file], "{file}");
}

#[test]
fn folders_written_by_transformers_are_read_tensor_for_tensor() {
    let (dir, _) = inputs();
    for name in ["single", "sharded", "untied", "half", "bin", "bin_sharded"] {
        let folder = hf::open(&dir.join(name), &ReadLimits::default()).unwrap();
        assert!(folder.config_json.starts_with(b"{"));
        assert_equal(&folder.tensors, name);
        assert!(folder.tensors.is_sorted_by(|a, b| a.meta.name < b.meta.name), "{name}");
    }
    assert!(
        hf::open(&dir.join("single"), &ReadLimits::default())
            .unwrap()
            .files
            .iter()
            .any(|path| path.ends_with("generation_config.json"))
    );
}

#[test]
fn a_state_dict_of_every_dtype_and_stride_is_read_in_every_protocol() {
    let (dir, _) = inputs();
    for protocol in 2..=5 {
        let name = format!("odd{protocol}.pt");
        let file = PtFile::open(&dir.join(&name), &ReadLimits::default()).unwrap();
        assert_equal(&hf::state_dict_tensors(&file, file.value()).unwrap(), &name);
    }
    assert_equal(
        &safetensors::open(&dir.join("odd.safetensors"), &ReadLimits::default()).unwrap().tensors,
        "odd.safetensors",
    );
}

#[test]
fn tensors_that_share_a_storage_stay_shared() {
    let (dir, _) = inputs();
    let file = PtFile::open(&dir.join("bin/pytorch_model.bin"), &ReadLimits::default()).unwrap();
    let storage = |name: &str| Arc::clone(&file.value().get(name).unwrap().as_tensor().unwrap().storage);
    assert!(Arc::ptr_eq(&storage("transformer.wte.weight"), &storage("lm_head.weight")));
    let tensors = hf::open(&dir.join("bin"), &ReadLimits::default()).unwrap().tensors;
    let address = |name: &str| {
        let tensor = tensors.iter().find(|tensor| tensor.meta.name == name).unwrap();
        (*tensor.bytes).as_ref().as_ptr()
    };
    // Nothing is copied: both lie at one place of the mapping.
    assert_eq!(address("transformer.wte.weight"), address("lm_head.weight"));
}

#[test]
fn a_whole_checkpoint_is_read_as_plain_values() {
    let (dir, _) = inputs();
    for protocol in [2, 5] {
        let file = PtFile::open(&dir.join(format!("checkpoint{protocol}.pt")), &ReadLimits::default()).unwrap();
        let value = file.value();
        assert_eq!(value.get("step").unwrap().as_int(), Some(12));
        assert_eq!(value.get("loss").unwrap().as_float(), Some(0.5));
        assert_eq!(value.get("name").unwrap().as_str(), Some("é"));
        assert_eq!(value.get("none"), Some(&PtValue::None));
        assert_eq!(value.get("flag"), Some(&PtValue::Bool(true)));
        assert_eq!(value.get("negative").unwrap().as_int(), Some(-(1 << 40)));
        assert_eq!(value.get("big"), Some(&PtValue::Other("a very large number")));
        assert_eq!(value.get("dtype"), Some(&PtValue::DType(ckptd_core::dtype::DType::BF16)));
        assert_eq!(value.get("size"), Some(&PtValue::Tuple(vec![PtValue::Int(1), PtValue::Int(2)])));
        assert_eq!(value.get("pair"), Some(&PtValue::Tuple(vec![PtValue::Int(1), PtValue::Float(2.0)])));
        let optimizer = value.get("optimizer").unwrap();
        let group = &optimizer.get("param_groups").unwrap().as_items().unwrap()[0];
        assert_eq!(group.get("lr").unwrap().as_float(), Some(1e-3));
        assert_eq!(group.get("params"), Some(&PtValue::List(vec![PtValue::Int(0), PtValue::Int(1)])));
        let (key, state) = &optimizer.get("state").unwrap().as_dict().unwrap()[0];
        assert_eq!(key, &PtValue::Int(0));
        assert_eq!(state.get("exp_avg").unwrap().as_tensor().unwrap().shape, [4, 3]);
    }
}

#[test]
fn what_is_no_state_dict_is_refused_with_what_to_do() {
    let (dir, _) = inputs();
    let refusal = |name: &str| PtFile::open(&dir.join(name), &ReadLimits::default()).err().unwrap().to_string();
    assert!(refusal("legacy.pt").contains("legacy format"), "{}", refusal("legacy.pt"));
    assert!(refusal("legacy.pt").contains("save it again"));
    assert!(
        refusal("module.pt").contains("refusing global torch.nn.modules.linear.Linear:"),
        "{}",
        refusal("module.pt")
    );
    assert!(refusal("script.pt").contains("TorchScript"), "{}", refusal("script.pt"));
    assert!(refusal("odd.safetensors").contains("not a PyTorch file"));
    let checkpoint = PtFile::open(&dir.join("checkpoint2.pt"), &ReadLimits::default()).unwrap();
    let refusal = hf::state_dict_tensors(&checkpoint, checkpoint.value()).unwrap_err().to_string();
    assert!(refusal.contains("\"model\" is a dict, not a tensor"), "{refusal}");
}

#[test]
fn a_folder_without_its_parts_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let refusal = || hf::open(dir.path(), &ReadLimits::default()).err().unwrap().to_string();
    assert!(refusal().contains("no config.json"));
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    assert!(refusal().contains("holds no weights"));
    let index = dir.path().join("model.safetensors.index.json");
    for (name, what) in [("a/x", "not the plain name"), ("a.safetensors", "not in the folder")] {
        std::fs::write(&index, format!(r#"{{"weight_map":{{"a":"{name}"}}}}"#)).unwrap();
        assert!(refusal().contains(what), "{}", refusal());
    }
}
