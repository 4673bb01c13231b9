//! Writes a folder of `torch.distributed.checkpoint` as one process does: `.metadata` and `__0_0.distcp`.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use crate::torch_pt::pickler::{PtObject, TensorSlot, pickle};
use crate::torch_pt::writer::PtArchive;
use ckptd_core::dtype::DType;
use ckptd_core::error::{Error, Result};

/// The one file of data.
pub const DATA: &str = "__0_0.distcp";
const MODULE: &str = "torch.distributed.checkpoint.metadata";

/// An entry of the flat state dict.
#[derive(Clone, Debug, PartialEq)]
pub struct DcpItem {
    /// Keys of text and places in lists that lead to it; its name is these, joined by dots.
    pub path: Vec<PtObject>,
    pub content: DcpContent,
}

#[derive(Clone, Debug, PartialEq)]
pub enum DcpContent {
    /// Tensor number `number` of those that are streamed; several entries may have the same.
    Tensor { number: usize, dtype: DType, shape: Vec<u64> },
    /// Anything else, without tensors.
    Object(PtObject),
}

impl DcpItem {
    fn name(&self) -> String {
        let part = |key: &PtObject| match key {
            PtObject::Str(text) => text.clone(),
            PtObject::Int(place) => place.to_string(),
            other => format!("{other:?}"),
        };
        self.path.iter().map(part).collect::<Vec<_>>().join(".")
    }
}

/// Offset and length of an entry in the data file.
type ItemRange = (u64, u64);

/// Writes the data of `items` to `file`, which is at `path`; returns the content of `.metadata`. `stream` hands the
/// tensors over in the order of their numbers, each in one piece or more.
pub fn write(
    file: &mut File,
    path: &Path,
    items: &[DcpItem],
    stream: impl FnOnce(&mut dyn FnMut(usize, &[u8]) -> Result<()>) -> Result<()>,
) -> Result<Vec<u8>> {
    let mut writer = DcpWriter { out: Some(BufWriter::with_capacity(1 << 20, file)), path, at: 0 };
    let mut tensors: Vec<(DType, &[u64])> = Vec::new();
    for item in items {
        if let DcpContent::Tensor { number, dtype, shape } = &item.content
            && *number == tensors.len()
        {
            tensors.push((*dtype, shape));
        }
    }
    let mut ranges: Vec<ItemRange> = Vec::new();
    let mut open = None;
    stream(&mut |number, piece| {
        while ranges.len() < number {
            ranges.push(writer.end(open.take())?);
        }
        let (dtype, shape) = tensors[number];
        let mut archive = match open.take() {
            Some(archive) => archive,
            None => writer.begin(&tensor_object(dtype, shape))?,
        };
        archive.piece(0, shape.iter().product::<u64>() * dtype.size() as u64, piece)?;
        open = Some(archive);
        Ok(())
    })?;
    while ranges.len() < tensors.len() {
        ranges.push(writer.end(open.take())?);
    }
    let mut places = Vec::new();
    for item in items {
        places.push(match &item.content {
            DcpContent::Tensor { number, .. } => ranges[*number],
            DcpContent::Object(object) => {
                let archive = writer.begin(object)?;
                writer.end(Some(archive))?
            }
        });
    }
    writer.flush()?;
    Ok(pickle(&metadata(items, &places)))
}

fn tensor_object(dtype: DType, shape: &[u64]) -> PtObject {
    PtObject::Tensor(TensorSlot { storage: 0, dtype, shape: shape.to_vec() })
}

/// The data file: archives one after the other.
struct DcpWriter<'a> {
    out: Option<BufWriter<&'a mut File>>,
    path: &'a Path,
    at: u64,
}

impl<'a> DcpWriter<'a> {
    fn begin(&mut self, object: &PtObject) -> Result<PtArchive<'a, Embedded<'a>>> {
        let Some(out) = self.out.take() else { return Err(self.misused()) };
        PtArchive::begin(Embedded { out, base: self.at }, self.path, "archive", object)
    }

    fn end(&mut self, archive: Option<PtArchive<'a, Embedded<'a>>>) -> Result<ItemRange> {
        let Some(archive) = archive else { return Err(self.misused()) };
        let (Embedded { mut out, .. }, _) = archive.finish()?;
        let end = out.seek(SeekFrom::End(0)).map_err(|e| Error::io("writing", self.path, e))?;
        self.out = Some(out);
        let range = (self.at, end - self.at);
        self.at = end;
        Ok(range)
    }

    fn flush(&mut self) -> Result<()> {
        match &mut self.out {
            Some(out) => out.flush().map_err(|e| Error::io("writing", self.path, e)),
            None => Err(self.misused()),
        }
    }

    fn misused(&self) -> Error {
        Error::mismatch(self.path, "a tensor of the snapshot has no bytes")
    }
}

/// The rest of a file, as a file of its own.
struct Embedded<'a> {
    out: BufWriter<&'a mut File>,
    base: u64,
}

impl Write for Embedded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Seek for Embedded<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(at) => SeekFrom::Start(self.base + at),
            other => other,
        };
        let at = self.out.seek(to)?;
        at.checked_sub(self.base).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
    }
}

/// `Metadata` of entries that lie at `places`.
fn metadata(items: &[DcpItem], places: &[ItemRange]) -> PtObject {
    let entry = |item: &DcpItem| (PtObject::Str(item.name()), entry(&item.content));
    let place = |(item, &(offset, length)): (&DcpItem, &ItemRange)| {
        let zero = match &item.content {
            DcpContent::Tensor { shape, .. } => size(&vec![0; shape.len()]),
            DcpContent::Object(_) => PtObject::None,
        };
        let index = match &item.content {
            DcpContent::Tensor { .. } => PtObject::Int(0),
            DcpContent::Object(_) => PtObject::None,
        };
        let key = instance("MetadataIndex", [("fqn", PtObject::Str(item.name())), ("index", index), ("offset", zero)]);
        let info = PtObject::dict([
            ("relative_path", PtObject::str(DATA)),
            ("offset", PtObject::Int(offset as i64)),
            ("length", PtObject::Int(length as i64)),
        ]);
        let module = "torch.distributed.checkpoint.filesystem";
        (key, PtObject::Instance(module, "_StorageInfo", Box::new(info)))
    };
    let path = |item: &DcpItem| (PtObject::Str(item.name()), PtObject::Tuple(item.path.clone()));
    let storage_meta = instance(
        "StorageMeta",
        [
            ("checkpoint_id", PtObject::None),
            ("save_id", PtObject::None),
            ("load_id", PtObject::None),
            ("modules", PtObject::List(Vec::new())),
        ],
    );
    instance(
        "Metadata",
        [
            ("state_dict_metadata", PtObject::Dict(items.iter().map(entry).collect())),
            ("planner_data", PtObject::Dict(items.iter().map(path).collect())),
            ("storage_data", PtObject::Dict(items.iter().zip(places).map(place).collect())),
            ("storage_meta", storage_meta),
            ("version", PtObject::str("1.0.0")),
        ],
    )
}

/// The metadata of one entry.
fn entry(content: &DcpContent) -> PtObject {
    let DcpContent::Tensor { dtype, shape, .. } = content else {
        return instance("BytesStorageMetadata", []);
    };
    let layout = PtObject::Call("torch.serialization", "_get_layout", vec![PtObject::str("torch.strided")]);
    let contiguous = PtObject::Call(MODULE, "_MEM_FORMAT_ENCODING", vec![PtObject::Int(0)]);
    let properties = PtObject::Tuple(vec![
        PtObject::Global("torch", torch_name(*dtype)),
        layout,
        PtObject::Bool(false),
        contiguous,
        PtObject::Bool(false),
    ]);
    let properties = PtObject::Instance(MODULE, "TensorProperties", Box::new(properties));
    let chunk = instance("ChunkStorageMetadata", [("offsets", size(&vec![0; shape.len()])), ("sizes", size(shape))]);
    let chunks = PtObject::List(vec![chunk]);
    instance("TensorStorageMetadata", [("properties", properties), ("size", size(shape)), ("chunks", chunks)])
}

fn instance<const N: usize>(name: &'static str, fields: [(&'static str, PtObject); N]) -> PtObject {
    PtObject::Instance(MODULE, name, Box::new(PtObject::dict(fields)))
}

/// `torch.Size`
fn size(sizes: &[u64]) -> PtObject {
    let sizes = sizes.iter().map(|&size| PtObject::Int(size as i64)).collect();
    PtObject::Call("torch", "Size", vec![PtObject::Tuple(sizes)])
}

/// The name of a type within the module `torch`.
fn torch_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "float64",
        DType::F32 => "float32",
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        DType::I64 => "int64",
        DType::I32 => "int32",
        DType::I16 => "int16",
        DType::I8 => "int8",
        DType::U8 => "uint8",
        DType::Bool => "bool",
    }
}
