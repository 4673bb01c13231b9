//! The names that a pickle may refer to: all that PyTorch's own `weights_only` reader needs for state dicts, and
//! nothing that runs. A name stands here for a plain value or for a constructor of plain values that the machine
//! knows; no code of anybody is ever looked up.

use ckptd_core::dtype::DType;

/// Before the name of a global that is not read.
pub(super) const REFUSING: &str = "refusing global";

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PickleGlobal {
    /// `collections.OrderedDict` and its like: an empty dict, or one from pairs.
    Dict,
    /// `collections.defaultdict`: its first argument is the factory, which is ignored.
    DefaultDict,
    RebuildTensor,
    RebuildTensorV2,
    RebuildParameter,
    RebuildFromType,
    /// `torch.FloatStorage` and its like.
    Storage(DType),
    DType(DType),
    /// `torch.Size`: a tuple.
    Size,
    /// `set`, `frozenset`, `list`, `tuple` of one iterable.
    Collection,
    /// A data class of `torch.distributed.checkpoint`: the dict of its fields.
    Record,
    /// A class that only marks a type (`torch.Tensor`, `torch.nn.Parameter`).
    Class,
    /// Something without meaning for a state (bytes, a device, a complex number).
    Opaque(&'static str),
}

/// How tensors of a subclass that wraps others are written: quantised, sharded.
pub const WRAPPER_SUBCLASS: &str = "torch._utils._rebuild_wrapper_subclass";

/// The top modules whose objects lie beside weights in many checkpoints as plain data: settings, paths, dates, random
/// states. Such an object is passed over as a whole, unread and unmade.
const DATA_MODULES: [&str; 17] = [
    "numpy",
    "argparse",
    "pathlib",
    "datetime",
    "decimal",
    "fractions",
    "uuid",
    "enum",
    "types",
    "omegaconf",
    "transformers",
    "accelerate",
    "lightning",
    "pytorch_lightning",
    "torchao",
    "bitsandbytes",
    "__main__",
];

/// Whether `global`, the full name of a class, is of a module whose objects are known as data.
pub fn is_data(global: &str) -> bool {
    const OF_TORCH: [&str; 3] = [WRAPPER_SUBCLASS, "torch.distributed.", "torch.torch_version."];
    let module = global.split('.').next().unwrap_or_default();
    DATA_MODULES.contains(&module) || OF_TORCH.iter().any(|name| global.starts_with(name))
}

/// What `module.name` stands for, or `None` where it is not allowed.
pub fn lookup(module: &str, name: &str) -> Option<PickleGlobal> {
    match module {
        "collections" => match name {
            "OrderedDict" | "Counter" => Some(PickleGlobal::Dict),
            "defaultdict" => Some(PickleGlobal::DefaultDict),
            _ => None,
        },
        // Python 2's name for builtins is what protocol 2 writes.
        "builtins" | "__builtin__" => match name {
            "set" | "frozenset" | "list" | "tuple" => Some(PickleGlobal::Collection),
            "dict" => Some(PickleGlobal::Dict),
            "bytearray" => Some(PickleGlobal::Opaque("a bytearray")),
            "int" | "float" | "bool" | "str" => Some(PickleGlobal::Class),
            "complex" => Some(PickleGlobal::Opaque("a complex number")),
            _ => None,
        },
        // `_codecs.encode(text, "latin1")` is how protocol 2 writes bytes.
        "_codecs" => (name == "encode").then_some(PickleGlobal::Opaque("bytes")),
        "torch._utils" => match name {
            "_rebuild_tensor" => Some(PickleGlobal::RebuildTensor),
            "_rebuild_tensor_v2" => Some(PickleGlobal::RebuildTensorV2),
            "_rebuild_parameter" | "_rebuild_parameter_with_state" => Some(PickleGlobal::RebuildParameter),
            _ => None,
        },
        "torch._tensor" => (name == "_rebuild_from_type_v2").then_some(PickleGlobal::RebuildFromType),
        "torch.nn.parameter" => (name == "Parameter").then_some(PickleGlobal::Class),
        "torch.distributed.checkpoint.metadata" => match name {
            "Metadata" | "MetadataIndex" | "StorageMeta" | "TensorProperties" => Some(PickleGlobal::Record),
            "TensorStorageMetadata" | "ChunkStorageMetadata" | "BytesStorageMetadata" => Some(PickleGlobal::Record),
            "_MEM_FORMAT_ENCODING" => Some(PickleGlobal::Opaque("a memory format")),
            _ => None,
        },
        "torch.distributed.checkpoint.filesystem" => (name == "_StorageInfo").then_some(PickleGlobal::Record),
        "torch.serialization" => (name == "_get_layout").then_some(PickleGlobal::Opaque("a layout")),
        "pathlib" | "pathlib._local" => {
            matches!(name, "PosixPath" | "PurePosixPath").then_some(PickleGlobal::Opaque("a path"))
        }
        "torch" => torch(name),
        // A module of TorchScript: the dict of its attributes. Its code is never looked at.
        "__torch__" => Some(PickleGlobal::Record),
        _ if module.starts_with("__torch__.") => Some(PickleGlobal::Record),
        _ => None,
    }
}

fn torch(name: &str) -> Option<PickleGlobal> {
    if let Some(storage) = name.strip_suffix("Storage") {
        return Some(PickleGlobal::Storage(match storage {
            "Double" => DType::F64,
            "Float" => DType::F32,
            "Half" => DType::F16,
            "BFloat16" => DType::BF16,
            "Long" => DType::I64,
            "Int" => DType::I32,
            "Short" => DType::I16,
            "Char" => DType::I8,
            "Byte" => DType::U8,
            "Bool" => DType::Bool,
            _ => return None,
        }));
    }
    Some(match name {
        "float64" | "double" => PickleGlobal::DType(DType::F64),
        "float32" | "float" => PickleGlobal::DType(DType::F32),
        "float16" | "half" => PickleGlobal::DType(DType::F16),
        "bfloat16" => PickleGlobal::DType(DType::BF16),
        "int64" | "long" => PickleGlobal::DType(DType::I64),
        "int32" | "int" => PickleGlobal::DType(DType::I32),
        "int16" | "short" => PickleGlobal::DType(DType::I16),
        "int8" => PickleGlobal::DType(DType::I8),
        "uint8" => PickleGlobal::DType(DType::U8),
        "bool" => PickleGlobal::DType(DType::Bool),
        "Size" => PickleGlobal::Size,
        "Tensor" => PickleGlobal::Class,
        "device" => PickleGlobal::Opaque("a device"),
        _ => return None,
    })
}
