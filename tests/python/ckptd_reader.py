"""Reads ckptd's snapshots: an independent reader of docs/format.md (standard library, numpy and zstandard).

    python ckptd_reader.py FILE [--json] [--extract FOLDER]

checks every hash of a snapshot and prints what is in it; exit code 1 and a line on stderr where anything does not fit.
As a module: `Snapshot(path)`, then `.array(role, name)`, `.raw(role, name)`, `.file(name)`, `.check()`."""

import argparse
import dataclasses
import json
import math
import os
import struct
import sys
from datetime import datetime
from pathlib import Path

import numpy as np

from ckptd_blake3 import blake3, parent, subtrees
from ckptd_codec import SIZES, ChunkError, decode_chunk

HEADS = {version: b"\x89CKPTD\r\n" + struct.pack("<II", version, 0) for version in (1, 2)}
HEAD_BYTES = 16
MAGIC = b"ckptdEND"
TRAILER_BYTES, RECORD_BYTES, CHUNK_BYTES = 152, 72, 524288
MAX_MANIFEST = 256 << 20
ROOT_CONTEXT = "ckptd 2026 root of a training state"
ROLES = ("param", "exp_avg", "exp_avg_sq", "momentum_buffer", "buffer")
# The role that makes a file one of version 2.
STATE = "state"
NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip
# Chunks that are read, hashed and decoded at a time.
BATCH = 8


class Damaged(ValueError):
    """The file is not what was written, or no snapshot."""


@dataclasses.dataclass(frozen=True)
class Item:
    """A tensor or a carried file (role "file"), and which chunks hold it."""

    role: str
    name: str
    dtype: str
    shape: tuple
    bytes: int
    hash: str
    chunks: range

    @property
    def row(self) -> int:
        return self.shape[1] if self.role != "file" and len(self.shape) == 2 and self.shape[0] > 1 else 0


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Where a chunk lies in the file and in its item, and what it must hash to."""

    at: int
    encoded: int
    offset: int
    raw: int
    encoded_hash: bytes
    raw_hash: bytes


class Snapshot:
    """An open snapshot whose head, trailer, manifest and chunk table are whole and agree."""

    def __init__(self, path):
        self.path = path
        self._file = open(path, "rb")
        size = self._file.seek(0, 2)
        require(size >= HEAD_BYTES + TRAILER_BYTES, f"{size} bytes are too few for a snapshot")
        trailer = self._read(size - TRAILER_BYTES, TRAILER_BYTES)
        version, table_at, manifest_at, end = parse_trailer(trailer, size)
        require(self._read(0, HEAD_BYTES) == HEADS[version], f"the head is not that of a snapshot of version {version}")
        table, manifest = self._read(table_at, manifest_at - table_at), self._read(manifest_at, end - manifest_at)
        self.bytes, self.file_hash = size, blake3(trailer).hex()
        require(blake3(manifest) == trailer[80:112], "the manifest does not match its hash")
        require(blake3(table) == trailer[48:80], "the chunk table does not match its hash")
        self.manifest, self._train_text = parse_manifest(manifest)
        require(self.manifest["format"] == version, "the manifest is of another version than the trailer")
        self.tensors, self.files = items(self.manifest)
        self._chunks = parse_table(table, self.tensors + self.files, table_at)
        for item in self.tensors + self.files:
            made = merge([self._chunks[i].raw_hash for i in item.chunks]).hex()
            require(made == item.hash, f"the chunks' hashes of {item.role} {item.name} do not make its hash")
        require(root(self.tensors, self._train_text) == self.manifest["root"], "root is not the state's")

    def raw(self, role: str, name: str) -> bytes:
        """The bytes of a tensor, or of a carried file under the role "file"."""
        found = [item for item in self.tensors + self.files if (item.role, item.name) == (role, name)]
        require(found, f"there is no {role} {name}")
        return b"".join(self.pieces(found[0]))

    def array(self, role: str, name: str) -> np.ndarray:
        """A tensor as numpy has it; numpy knows no bfloat16, whose values come as float32."""
        tensor = next(item for item in self.tensors if (item.role, item.name) == (role, name))
        raw = self.raw(role, name)
        if tensor.dtype == "BF16":
            return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4").reshape(tensor.shape)
        return np.frombuffer(raw, NUMPY[tensor.dtype]).reshape(tensor.shape)

    def file(self, name: str) -> bytes:
        return self.raw("file", name)

    def pieces(self, item: Item):
        """The raw bytes of an item, chunk by chunk, each of them checked."""
        for first in range(item.chunks.start, item.chunks.stop, BATCH):
            chunks = self._chunks[first : min(first + BATCH, item.chunks.stop)]
            yield from self._decode(item, chunks)

    def _decode(self, item: Item, chunks: list) -> list:
        encoded = [self._read(chunk.at, chunk.encoded) for chunk in chunks]
        for chunk, found in zip(chunks, subtrees([(data, 0, True) for data in encoded])):
            require(found == chunk.encoded_hash, f"the chunk of {item.role} {item.name} at byte {chunk.at} is damaged")
        raw = []
        for chunk, data in zip(chunks, encoded):
            try:
                first = chunk.offset // SIZES[item.dtype]
                raw.append(decode_chunk(data, item.dtype, item.role, item.row, first, chunk.raw))
            except ChunkError as error:
                raise Damaged(f"the chunk of {item.role} {item.name} at byte {chunk.at}: {error}") from error
        whole = len(item.chunks) == 1
        for chunk, found in zip(chunks, subtrees([(data, c.offset, whole) for c, data in zip(chunks, raw)])):
            require(found == chunk.raw_hash, f"the chunk of {item.role} {item.name} at byte {chunk.at} decodes wrongly")
        return raw

    def check(self, folder: Path | None = None) -> None:
        """Reads everything, and writes it to 0.bin, 1.bin, ... in `folder`: the tensors' raw bytes, then the files'."""
        finite = True
        for number, item in enumerate(self.tensors + self.files):
            with open(folder / f"{number}.bin" if folder else os.devnull, "wb") as out:
                for piece in self.pieces(item):
                    out.write(piece)
                    finite &= item.role != "param" or all_finite(piece, item.dtype)
        # A loss that was not finite is null in the manifest, so that health can be doubted in one direction only.
        require(finite or not self.manifest["healthy"], "it is marked healthy, but not all parameters are finite")

    def _read(self, at: int, length: int) -> bytes:
        self._file.seek(at)
        data = self._file.read(length)
        require(len(data) == length, "the file ends early")
        return data


def require(holds, otherwise: str) -> None:
    if not holds:
        raise Damaged(otherwise)


def parse_trailer(trailer: bytes, size: int) -> tuple:
    """The version, where table and manifest begin, and where the manifest ends."""
    require(trailer[:8] == MAGIC and trailer[144:] == MAGIC, "it does not end as a snapshot; it was cut, or is none")
    require(blake3(trailer[:112]) == trailer[112:144], "the trailer is damaged")
    version, file_bytes, table, manifest, end = struct.unpack("<5Q", trailer[8:48])
    require(version in HEADS, f"it is of version {version}; this reader knows versions 1 and 2")
    fits = HEAD_BYTES <= table <= manifest <= end == size - TRAILER_BYTES and file_bytes == size
    require(fits and (manifest - table) % RECORD_BYTES == 0, "the trailer's offsets do not fit the file")
    require(end - manifest <= MAX_MANIFEST, "the manifest is too large")
    return version, table, manifest, end


def parse_manifest(text: bytes) -> tuple:
    """The manifest, and the text of its train state as it stands there."""

    def unique(pairs):
        require(len({key for key, _ in pairs}) == len(pairs), "a key stands twice in the manifest")
        return dict(pairs)

    def constant(name):
        raise Damaged(f"{name} in the manifest")

    decoder = json.JSONDecoder(object_pairs_hook=unique, parse_constant=constant)
    try:
        text = text.decode()
        manifest = decoder.decode(text)
        train_text = value_text(decoder, text, "train")
        check_manifest(manifest)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise error if isinstance(error, Damaged) else Damaged(f"the manifest does not parse: {error!r}") from error
    return manifest, train_text


def value_text(decoder: json.JSONDecoder, text: str, wanted: str) -> str:
    """The text of one value of an object that is written without blanks."""
    at = 1
    while True:
        key, at = decoder.raw_decode(text, at)
        require(text[at] == ":", "the manifest is not written without blanks")
        _, end = decoder.raw_decode(text, at + 1)
        if key == wanted:
            return text[at + 1 : end]
        require(text[end] == ",", f"the manifest has no {wanted}")
        at = end + 1


def check_manifest(manifest: dict) -> None:
    """Every field and every limit of docs/format.md that needs no other part of the file."""
    natural = lambda value: type(value) is int and 0 <= value < 2**64  # noqa: E731
    number = lambda value: value is None or type(value) in (int, float) and math.isfinite(value)  # noqa: E731
    is_hash = lambda value: type(value) is str and len(value) == 64 and not set(value) - set("0123456789abcdef")  # noqa: E731
    train, metrics, provenance = manifest["train"], manifest["metrics"], manifest["provenance"]
    least = 2 if any(tensor["role"] == STATE for tensor in manifest["tensors"]) else 1
    require((manifest["format"], manifest["chunk_bytes"]) == (least, CHUNK_BYTES), "another format or size of chunks")
    require(type(manifest["run_id"]) is str and natural(manifest["seq"]), "run_id or seq is none")
    require(is_hash(manifest["root"]) and (manifest.get("parent") is None or is_hash(manifest["parent"])), "no root")
    require(type(manifest["healthy"]) is bool and natural(manifest["raw_bytes"]), "healthy or raw_bytes is none")
    datetime.fromisoformat(manifest["created_at"])
    for key in ("step", "tokens_seen", "epoch", "position", "last_eval_step"):
        require(natural(train[key]), f"train {key} is no number")
    require(number(train.get("best_val_loss")), "train best_val_loss is no number")
    settings = train["settings"]
    require(all(type(value) is str for value in settings.values()), "a setting is no text")
    require(sorted(settings, key=str.encode) == list(settings), "the settings are not sorted")
    require(all(number(metrics.get(key)) for key in ("train_loss", "val_loss", "val_step")), "a metric is no number")
    require(metrics.get("probe") is None or is_hash(metrics["probe"]), "the probe is no hash")
    for key in ("ckptd", "libtorch", "host", "device", "reason"):
        require(type(provenance[key]) is str, f"provenance {key} is no text")
    for tensor in manifest["tensors"]:
        known = tensor["role"] in (*ROLES, STATE) and tensor["dtype"] in SIZES and is_hash(tensor["hash"])
        shape = tensor["shape"]
        require(known and all(map(natural, shape)) and len(shape) <= 16, f"a tensor is not one: {tensor}")
        require(len(tensor["name"].encode()) <= 1024, "a tensor's name is too long")
    for file in manifest["files"]:
        name = file["name"]
        plain = 0 < len(name.encode()) <= 255 and name not in (".", "..") and not set(name) & set("/\\\0")
        require(plain and natural(file["bytes"]) and is_hash(file["hash"]), f"a carried file is not one: {file}")


def items(manifest: dict) -> tuple:
    """Tensors and files with the chunks that they have."""
    made, at = [], 0
    tensors = [(t["role"], t["name"], t["dtype"], tuple(t["shape"]), t["hash"]) for t in manifest["tensors"]]
    files = [("file", f["name"], "U8", (f["bytes"],), f["hash"]) for f in manifest["files"]]
    for role, name, dtype, shape, hash in tensors + files:
        size = math.prod(shape) * SIZES[dtype]
        count = -(-size // CHUNK_BYTES)
        made.append(Item(role, name, dtype, shape, size, hash, range(at, at + count)))
        at += count
    require(len({(item.role, item.name) for item in made}) == len(made), "a name stands twice in the manifest")
    raw_bytes = sum(item.bytes for item in made[: len(tensors)])
    require(raw_bytes == manifest["raw_bytes"] < 2**63, "raw_bytes is not the sum over the tensors")
    return made[: len(tensors)], made[len(tensors) :]


def parse_table(table: bytes, all_items: list, table_at: int) -> list:
    """The chunks, in the order of the file."""
    expected = sum(len(item.chunks) for item in all_items)
    records = list(struct.iter_unpack("<Q32s32s", table))
    require(len(records) == expected, f"{len(records)} chunks in the table, {expected} in the manifest")
    chunks, at = [], HEAD_BYTES
    for item in all_items:
        for index, number in enumerate(item.chunks):
            encoded, encoded_hash, raw_hash = records[number]
            offset = index * CHUNK_BYTES
            raw = min(item.bytes - offset, CHUNK_BYTES)
            require(1 <= encoded <= raw + 1, f"a chunk of {item.role} {item.name} is {encoded} bytes long")
            chunks.append(Chunk(at, encoded, offset, raw, encoded_hash, raw_hash))
            at += encoded
    require(at == table_at, "the chunks' lengths do not add up to the file")
    return chunks


def merge(hashes: list) -> bytes:
    """The hash of an item from those of its chunks."""
    if not hashes:
        return blake3(b"")

    def tree(part, whole):
        if len(part) == 1:
            return part[0]
        middle = 1 << (len(part) - 1).bit_length() - 1
        return parent(tree(part[:middle], False), tree(part[middle:], False), whole)

    return tree(hashes, True)


def root(tensors: list, train_text: str) -> str:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    ordered = sorted(tensors, key=lambda t: (t.role.encode(), t.name.encode()))
    fields = ((t.role, t.name, t.dtype, ",".join(map(str, t.shape)), t.hash) for t in ordered)
    parts = [text(field) for tensor in fields for field in tensor]
    return blake3(b"".join(parts) + text(train_text), ROOT_CONTEXT).hex()


def all_finite(raw: bytes, dtype: str) -> bool:
    exponents = {"F64": ("<u8", 0x7FF << 52), "F32": ("<u4", 0xFF << 23), "BF16": ("<u2", 0xFF << 7), "F16": ("<u2", 0x1F << 10)}
    if dtype not in exponents:
        return True
    kind, mask = exponents[dtype]
    return not (np.frombuffer(raw, kind) & np.array(mask, kind) == mask).any()


def describe(snapshot: Snapshot) -> str:
    lines = [
        f"{item.role:<16}{item.dtype:<5} {item.name} {list(item.shape)} {item.hash[:16]}"
        for item in snapshot.tensors + snapshot.files
    ]
    manifest = snapshot.manifest
    health = "healthy" if manifest["healthy"] else "UNHEALTHY"
    lines.append(f"step {manifest['train']['step']}, {health}, root {manifest['root']}")
    lines.append(f"{len(snapshot.tensors)} tensors and {len(snapshot.files)} files, every hash matches")
    return "\n".join(lines)


def main() -> int:
    arguments = argparse.ArgumentParser(description="Checks every hash of a ckptd snapshot and prints what is in it.")
    arguments.add_argument("file")
    arguments.add_argument("--json", action="store_true", help="the manifest with the file hash, as one JSON document")
    arguments.add_argument("--extract", type=Path, metavar="FOLDER", help="write raw bytes to 0.bin, 1.bin, ... there")
    arguments = arguments.parse_args()
    try:
        snapshot = Snapshot(arguments.file)
        snapshot.check(arguments.extract)
    except (Damaged, OSError) as error:
        print(f"{arguments.file}: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps({"bytes": snapshot.bytes, "file_hash": snapshot.file_hash, **snapshot.manifest}, indent=2))
    else:
        print(describe(snapshot))
    return 0


if __name__ == "__main__":
    sys.exit(main())
