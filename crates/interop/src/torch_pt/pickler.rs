//! Pickles (protocol 2) of plain objects with tensors in them, op-code for op-code what PyTorch's own reader with
//! `weights_only=True` accepts. Deliberately not here: the archive (writer), shared or cyclic objects.

use ckptd_core::dtype::DType;

/// What is to be saved.
#[derive(Clone, Debug, PartialEq)]
pub enum PtObject {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    List(Vec<PtObject>),
    Tuple(Vec<PtObject>),
    Dict(Vec<(PtObject, PtObject)>),
    /// A `collections.OrderedDict`, as `Module.state_dict()` is one.
    OrderedDict(Vec<(PtObject, PtObject)>),
    Tensor(TensorSlot),
    /// `module.name`
    Global(&'static str, &'static str),
    /// `module.name(*arguments)`
    Call(&'static str, &'static str, Vec<PtObject>),
    /// An instance of the class `module.name` with this state, as `__getstate__` gives it.
    Instance(&'static str, &'static str, Box<PtObject>),
}

/// A contiguous tensor that fills storage number `storage`. Two slots of one storage are tied tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSlot {
    pub storage: usize,
    pub dtype: DType,
    pub shape: Vec<u64>,
}

impl PtObject {
    pub fn str(text: impl Into<String>) -> PtObject {
        PtObject::Str(text.into())
    }

    /// A dict with keys of text.
    pub fn dict<K: Into<String>>(items: impl IntoIterator<Item = (K, PtObject)>) -> PtObject {
        PtObject::Dict(items.into_iter().map(|(key, value)| (PtObject::str(key), value)).collect())
    }
}

/// The whole pickle of `object`.
pub fn pickle(object: &PtObject) -> Vec<u8> {
    let mut out = vec![0x80, 2];
    write(&mut out, object);
    out.push(b'.');
    out
}

fn write(out: &mut Vec<u8>, object: &PtObject) {
    match object {
        PtObject::None => out.push(b'N'),
        PtObject::Bool(true) => out.push(0x88),
        PtObject::Bool(false) => out.push(0x89),
        PtObject::Int(number) => int(out, *number),
        PtObject::Float(number) => {
            out.push(b'G');
            out.extend(number.to_be_bytes());
        }
        PtObject::Str(text) => string(out, text),
        PtObject::List(items) => {
            out.extend(b"](");
            items.iter().for_each(|item| write(out, item));
            out.push(b'e');
        }
        PtObject::Tuple(items) => tuple(out, items.iter(), write),
        PtObject::Dict(items) => {
            out.push(b'}');
            pairs(out, items);
        }
        PtObject::OrderedDict(items) => {
            out.extend(b"ccollections\nOrderedDict\n)R");
            pairs(out, items);
        }
        PtObject::Tensor(slot) => tensor(out, slot),
        PtObject::Global(module, name) => global(out, module, name),
        PtObject::Call(module, name, arguments) => {
            global(out, module, name);
            tuple(out, arguments.iter(), write);
            out.push(b'R');
        }
        PtObject::Instance(module, name, state) => {
            global(out, module, name);
            out.extend(b")\x81");
            write(out, state);
            out.push(b'b');
        }
    }
}

fn global(out: &mut Vec<u8>, module: &str, name: &str) {
    out.extend(format!("c{module}\n{name}\n").as_bytes());
}

fn pairs(out: &mut Vec<u8>, items: &[(PtObject, PtObject)]) {
    out.push(b'(');
    for (key, value) in items {
        write(out, key);
        write(out, value);
    }
    out.push(b'u');
}

fn tuple<T>(out: &mut Vec<u8>, items: impl ExactSizeIterator<Item = T>, mut one: impl FnMut(&mut Vec<u8>, T)) {
    match items.len() {
        0 => out.push(b')'),
        _ => {
            out.push(b'(');
            items.for_each(|item| one(out, item));
            out.push(b't');
        }
    }
}

fn int(out: &mut Vec<u8>, number: i64) {
    if let Ok(number) = i32::try_from(number) {
        out.push(b'J');
        out.extend(number.to_le_bytes());
    } else {
        out.extend([0x8a, 8]);
        out.extend(number.to_le_bytes());
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    // Names and configs are far below 4 GiB.
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

/// `torch._utils._rebuild_tensor_v2(storage, 0, shape, stride, False, OrderedDict())`
fn tensor(out: &mut Vec<u8>, slot: &TensorSlot) {
    let elements: u64 = slot.shape.iter().product();
    let mut stride = vec![1u64; slot.shape.len()];
    for i in (1..slot.shape.len()).rev() {
        stride[i - 1] = stride[i] * slot.shape[i].max(1);
    }
    let sizes = |out: &mut Vec<u8>, sizes: &[u64]| tuple(out, sizes.iter(), |out, &size| int(out, size as i64));
    out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    string(out, "storage");
    out.extend(b"ctorch\n");
    out.extend(storage_name(slot.dtype).as_bytes());
    out.extend(b"Storage\n");
    string(out, &slot.storage.to_string());
    string(out, "cpu");
    int(out, elements as i64);
    out.extend(b"tQ");
    int(out, 0);
    sizes(out, &slot.shape);
    sizes(out, &stride);
    out.push(0x89);
    out.extend(b"ccollections\nOrderedDict\n)RtR");
}

fn storage_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "Double",
        DType::F32 => "Float",
        DType::F16 => "Half",
        DType::BF16 => "BFloat16",
        DType::I64 => "Long",
        DType::I32 => "Int",
        DType::I16 => "Short",
        DType::I8 => "Char",
        DType::U8 => "Byte",
        DType::Bool => "Bool",
    }
}
