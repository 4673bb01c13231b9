//! What others write that is not read: recognised by its first bytes or the names in it, and refused by what it is,
//! with the command that makes something of it that is read.
//!
//! Deliberately not here: what is read (import).

use std::path::Path;

use crate::archive::ArchiveEntry;

/// `path` as one word of a shell.
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%,".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// The name beside `path` for what a command makes of it.
fn beside(path: &Path, end: &str) -> String {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    quoted(Path::new(&name))
}

/// A message: what it is, and a command that makes `made` of it.
fn convert(what: &str, command: &str, made: &str) -> String {
    format!("{what}, which is not read; this makes a file of it that is: `{command}`, then import {made}")
}

/// A line of Python as a command, with paths as arguments: `sys.argv[1]` and so on.
fn python(code: &str, arguments: &[&str]) -> String {
    format!("python -c \"{code}\" {}", arguments.join(" "))
}

/// What the file at `path` is, by its first bytes, where it is known and not read.
pub fn by_first_bytes(path: &Path, bytes: &[u8]) -> Option<String> {
    let (file, npz, pt) = (quoted(path), beside(path, ".npz"), beside(path, ".pt"));
    if bytes.starts_with(b"\x89HDF\r\n\x1a\n") {
        let code = "import sys, h5py, numpy as np; d = {}; f = h5py.File(sys.argv[1]); \
                    f.visititems(lambda n, o: d.update({n.replace('/', '.'): o[()]}) if hasattr(o, 'dtype') \
                    else None); \
                    np.savez(sys.argv[2], **d)";
        return Some(convert("an HDF5 file, as Keras writes it", &python(code, &[&file, &npz]), &npz));
    }
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".tar.gz") || name.ends_with(".tgz") {
            return Some(unpack("a tar archive under gzip", "xzf", path));
        }
        let plain = beside(path, ".unpacked");
        return Some(convert("a file under gzip", &format!("gzip -dc {file} > {plain}"), &plain));
    }
    if bytes.get(257..262) == Some(b"ustar") && !is_torch_tar(bytes) {
        return Some(unpack("a tar archive", "xf", path));
    }
    if bytes.starts_with(b"ZN") {
        let code = "import sys, zipnn; open(sys.argv[2], 'wb').write(\
                    zipnn.ZipNN(is_streaming=True).decompress(open(sys.argv[1], 'rb').read()))";
        let plain = beside(path, ".unpacked");
        return Some(convert("a file that ZipNN has compressed", &python(code, &[&file, &plain]), &plain));
    }
    if is_onnx(path, bytes) {
        let code = "import sys, onnx, numpy as np; m = onnx.load(sys.argv[1]); \
                    np.savez(sys.argv[2], **{t.name: onnx.numpy_helper.to_array(t) for t in m.graph.initializer})";
        return Some(convert("an ONNX model, which is a program", &python(code, &[&file, &npz]), &npz));
    }
    if bytes.starts_with(b"\x93NUMPY") {
        let what = "one array of NumPy without a name; a model is many: save it with numpy.savez(FILE, **state_dict)";
        return Some(what.into());
    }
    // Pickles of whole modules are refused by name where they are opened; here only what torch.save never begins with.
    if bytes.starts_with(b"\x80\x02c") && bytes.windows(6).take(256).any(|window| window == b"joblib") {
        let code = "import sys, joblib, torch; torch.save(joblib.load(sys.argv[1]), sys.argv[2])";
        return Some(convert("a pickle of joblib", &python(code, &[&file, &pt]), &pt));
    }
    None
}

fn unpack(what: &str, flags: &str, path: &Path) -> String {
    let (file, folder) = (quoted(path), beside(path, ".unpacked"));
    convert(what, &format!("mkdir -p {folder} && tar {flags} {file} -C {folder}"), &folder)
}

/// Whether a tar archive is one of PyTorch's first versions: it begins with one of their four members.
fn is_torch_tar(bytes: &[u8]) -> bool {
    const MEMBERS: [&str; 4] = ["sys_info", "pickle", "storages", "tensors"];
    let name = bytes.get(..100).unwrap_or_default();
    let name = name.split(|byte| *byte == 0).next().and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default();
    MEMBERS.contains(&name.trim_start_matches("./").trim_end_matches('/'))
}

/// ONNX is a protocol buffer without a magic number: its first field is a small version, the second the name of
/// the producer.
fn is_onnx(path: &Path, bytes: &[u8]) -> bool {
    let begins = matches!(bytes, [0x08, 1..=32, 0x12 | 0x1a | 0x3a, ..]);
    begins || path.extension().is_some_and(|extension| extension == "onnx")
}

/// What the zip archive at `path` is, by the names in it, where it is known and not read.
pub fn by_entries(path: &Path, entries: &[ArchiveEntry]) -> Option<String> {
    let (file, npz, pt) = (quoted(path), beside(path, ".npz"), beside(path, ".pt"));
    let has = |end: &str| entries.iter().any(|entry| entry.name == end || entry.name.ends_with(&format!("/{end}")));
    if has("model.weights.h5") {
        let code = "import sys, keras, numpy as np; m = keras.models.load_model(sys.argv[1]); \
                    np.savez(sys.argv[2], **{w.path.replace('/', '.'): np.asarray(w) for w in m.weights})";
        return Some(convert("a model of Keras", &python(code, &[&file, &npz]), &npz));
    }
    if has("archive_format") && has("archive_version") || has("serialized_exported_program.json") {
        let code = "import sys, torch; torch.save(dict(torch.export.load(sys.argv[1]).state_dict), sys.argv[2])";
        return Some(convert("a program of torch.export", &python(code, &[&file, &pt]), &pt));
    }
    None
}

/// What the folder `dir` is, by the names of its files, where it is known and not read.
pub fn by_folder(dir: &Path) -> Option<String> {
    let has = |name: &str| dir.join(name).exists();
    let folder = quoted(dir);
    if has("zero_to_fp32.py") || has_deepspeed_states(dir) {
        let (script, made) = (quoted(&dir.join("zero_to_fp32.py")), beside(dir, "-fp32"));
        let command = format!("python {script} {folder} {made}");
        return Some(format!(
            "a checkpoint of DeepSpeed, whose parts are pickles of its own classes and are not read; its own script \
             puts the weights together: `{command}`, then import {made} with --model CONFIG"
        ));
    }
    if has("_CHECKPOINT_METADATA") || has("manifest.ocdbt") || has("ocdbt.process_0") {
        let code = "import sys, jax, numpy as np, orbax.checkpoint as o; \
                    t = o.PyTreeCheckpointer().restore(__import__('os').path.abspath(sys.argv[1])); \
                    np.savez(sys.argv[2], **{'.'.join(str(getattr(k, 'key', getattr(k, 'idx', k))) for k in p): \
                    np.asarray(v) for p, v in jax.tree_util.tree_flatten_with_path(t)[0]})";
        let npz = beside(dir, ".npz");
        return Some(convert("a checkpoint of Orbax", &python(code, &[&folder, &npz]), &npz));
    }
    has("saved_model.pb").then(|| {
        "a SavedModel of TensorFlow, which is a program; save its weights with numpy.savez(FILE, **WEIGHTS)".into()
    })
}

/// The folder of one step, as DeepSpeed fills it.
fn has_deepspeed_states(dir: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.into_iter().any(|name| name.ends_with("_optim_states.pt") || name.ends_with("_model_states.pt"))
}

/// The command that saves what `torch.load` reads without running anything, in the format of today.
pub fn save_again(path: &Path) -> String {
    let code = "import sys, torch; torch.save(torch.load(sys.argv[1], weights_only=True), sys.argv[2])";
    command_to(path, ".again.pt", code)
}

/// The command that saves the state dicts of the modules in a pickle, which it runs.
pub fn save_state_dict(path: &Path) -> String {
    let code = "import sys, torch; f = lambda v: v.state_dict() if hasattr(v, 'state_dict') else \
                {k: f(x) for k, x in v.items()} if isinstance(v, dict) else v; \
                torch.save(f(torch.load(sys.argv[1], weights_only=False)), sys.argv[2])";
    format!("where its origin is trusted, as this runs what is in it: {}", command_to(path, ".state.pt", code))
}

/// The command that rounds the model at `path` to float32.
pub fn round_to_float32(path: &Path) -> String {
    if path.is_dir() {
        let code = "import sys; from transformers import GPT2LMHeadModel as M; \
                    M.from_pretrained(sys.argv[1], dtype='float32').save_pretrained(sys.argv[2])";
        return command_to(path, "-float32", code);
    }
    let round = "import sys, torch; f = lambda v: {k: f(x) for k, x in v.items()} if isinstance(v, dict) else \
                 v.float() if torch.is_tensor(v) and v.is_floating_point() else v";
    let is_safetensors = path.extension().is_some_and(|extension| extension == "safetensors");
    let load = if is_safetensors {
        "__import__('safetensors.torch').torch.load_file(sys.argv[1])"
    } else {
        "torch.load(sys.argv[1], weights_only=True)"
    };
    command_to(path, ".float32.pt", &format!("{round}; torch.save(f({load}), sys.argv[2])"))
}

/// The command that gives a model of nanoGPT without biases those of zero.
pub fn add_biases(path: &Path) -> String {
    let code = "import sys, torch; d = torch.load(sys.argv[1], weights_only=True); m = d['model']; \
                m.update({k[:-6] + 'bias': torch.zeros(v.shape[0]) for k, v in list(m.items()) \
                if k.endswith('.weight') and ('.h.' in k or 'ln_f' in k)}); \
                torch.save({'model': m, 'model_args': {**d['model_args'], 'bias': True}}, sys.argv[2])";
    command_to(path, ".biases.pt", code)
}

/// A line of Python that makes of `path` what is named like it and ends with `end`, and what is next.
fn command_to(path: &Path, end: &str, code: &str) -> String {
    let made = beside(path, end);
    format!("`{}`, then import {made}", python(code, &[&quoted(path), &made]))
}

/// What an adapter of PEFT is told where a model is read.
pub fn adapter(dir: &Path) -> String {
    let import = format!("ckptd import --from {} --base BASE STORE", quoted(dir));
    format!(
        "an adapter of PEFT, not a model; a LoRA is merged into its base model by {import}; {}",
        merge_with_peft(dir)
    )
}

/// The command that makes a model of an adapter of PEFT.
pub fn merge_with_peft(dir: &Path) -> String {
    let code = "import sys; from peft import AutoPeftModelForCausalLM as M; \
                M.from_pretrained(sys.argv[1]).merge_and_unload().save_pretrained(sys.argv[2])";
    format!("PEFT's own merge: {}", command_to(dir, "-merged", code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(bytes: &[u8]) -> String {
        by_first_bytes(Path::new("a b/x.bin"), bytes).unwrap_or_default()
    }

    #[test]
    fn files_of_others_are_known_by_their_first_bytes() {
        assert!(said(b"\x89HDF\r\n\x1a\n....").contains("HDF5"));
        assert!(said(&[0x1f, 0x8b, 8, 0]).contains("gzip -dc 'a b/x.bin' > 'a b/x.bin.unpacked'"));
        assert!(said(&[0x08, 8, 0x12, 7]).contains("ONNX"));
        assert!(said(b"ZN....").contains("ZipNN"));
        let mut tar = vec![0; 512];
        tar[..10].copy_from_slice(b"model/conf");
        tar[257..262].copy_from_slice(b"ustar");
        assert!(said(&tar).contains("tar xf 'a b/x.bin'"), "{}", said(&tar));
        tar[..10].copy_from_slice(b"storages\0\0");
        assert_eq!(said(&tar), "", "PyTorch's own");
        assert_eq!(said(b"PK\x03\x04"), "");
    }

    #[test]
    fn a_path_is_one_word_of_a_shell() {
        assert_eq!(quoted(Path::new("/a/b-1.pt")), "/a/b-1.pt");
        assert_eq!(quoted(Path::new("it's")), r"'it'\''s'");
        assert_eq!(quoted(Path::new("$(x)")), "'$(x)'");
    }
}
