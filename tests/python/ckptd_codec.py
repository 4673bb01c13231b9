"""Decodes ckptd's chunks: an independent reader of docs/codec.md (standard library, numpy and zstandard)."""

import numpy as np
import zstandard

RAW, CONSTANT, ZSTD, PLANES, SPLIT, SPLIT_POSITIVE, WHITENED, WHITENED_POSITIVE = range(8)
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
HIGH_BITS = {SPLIT: 8, SPLIT_POSITIVE: 7, WHITENED: 6, WHITENED_POSITIVE: 5}
CENTRE = 40 << 23
U32 = np.dtype("<u4")


class ChunkError(ValueError):
    """The encoded chunk is damaged."""


def decode_chunk(encoded: bytes, dtype: str, role: str, row: int, first: int, raw_len: int) -> bytes:
    """The raw bytes of a chunk. `role` is accepted because writers know it; the layout does not depend on it."""
    data = _Input(encoded)
    coding = data.take(1)[0]
    size = SIZES[dtype.upper()]
    if coding == RAW:
        raw = data.take(raw_len)
    elif coding == ZSTD:
        raw = _decompress(data.rest(), raw_len)
    elif raw_len == 0 or raw_len % size:
        raise ChunkError(f"coding {coding} does not fit {raw_len} bytes of {dtype}")
    elif coding == CONSTANT:
        raw = data.take(size) * (raw_len // size)
    elif coding == PLANES and dtype.upper() in ("F64", "F32", "F16", "BF16"):
        raw = _planes(data, raw_len // size, size)
    elif coding in HIGH_BITS and dtype.upper() == "F32":
        raw = _words(data, coding, raw_len // size, row, first).astype(U32, copy=False).tobytes()
    else:
        raise ChunkError(f"coding {coding} does not fit {dtype}")
    if data.rest():
        raise ChunkError("bytes are left over")
    return raw


class _Input:
    def __init__(self, data: bytes):
        self.data, self.at = memoryview(data), 0

    def take(self, length: int) -> bytes:
        if length > len(self.data) - self.at:
            raise ChunkError("the chunk ends early")
        self.at += length
        return bytes(self.data[self.at - length : self.at])

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.at)


def _decompress(frame: bytes, length: int) -> bytes:
    try:
        if zstandard.frame_content_size(frame) != length:
            raise ChunkError("a frame has another length than its data")
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ChunkError(f"damaged frame: {error}") from error


def _plane(data: _Input, n: int) -> np.ndarray:
    kind = data.take(1)[0]
    if kind == 0:
        return np.full(n, data.take(1)[0], np.uint8)
    if kind == 1:
        return np.frombuffer(data.take(n), np.uint8)
    if kind == 2:
        base = data.take(1)[0]
        frame = data.take(int.from_bytes(data.take(4), "little"))
        return np.frombuffer(_decompress(frame, n), np.uint8) + np.uint8(base)
    raise ChunkError(f"unknown plane {kind}")


def _planes(data: _Input, n: int, size: int) -> bytes:
    top, following, *others = (_plane(data, n) for _ in range(size))
    elements = np.empty((n, size), np.uint8)
    elements[:, size - 1] = top >> 1 | following & 0x80
    elements[:, size - 2] = (top & 1) << 7 | following & 0x7F
    for byte, plane in zip(range(size - 3, -1, -1), others):
        elements[:, byte] = plane
    return elements.tobytes()


def _words(data: _Input, coding: int, n: int, row: int, first: int) -> np.ndarray:
    """float32 bit patterns of a split or whitened chunk."""
    high_bits = HIGH_BITS[coding]
    whitened = coding in (WHITENED, WHITENED_POSITIVE)
    means = _means(data, n, row, first) if whitened else None
    words = _split_words(data, n, high_bits)
    if coding == SPLIT:
        return words >> 1 & np.uint32(0x7F800000) | words << 8 & np.uint32(0x80000000) | words & np.uint32(0x7FFFFF)
    if coding == SPLIT_POSITIVE:
        return words
    sign = np.uint32(0)
    if coding == WHITENED:
        sign = (words >> 21 & np.uint32(1)) << 31
        words = words >> 22 << 21 | words & np.uint32(0x1FFFFF)
    return (words + means) & np.uint32(0x7FFFFFFF) | sign


def _means(data: _Input, n: int, row: int, first: int) -> np.ndarray:
    """What is to be added to each residual, modulo 2^32."""
    if not 1 <= row <= n:
        raise ChunkError(f"rows of {row} elements in a chunk of {n}")
    start = first % row
    rows = -(-(start + n) // row)
    row_means = np.frombuffer(data.take(2 * rows), "<u2").astype(np.int64)
    column_means = np.frombuffer(data.take(row), np.int8).astype(np.int64)
    grid = ((row_means[:, None] + column_means[None, :]) << 20) - CENTRE
    return (grid.reshape(-1)[start : start + n] & 0xFFFFFFFF).astype(np.uint32)


def _split_words(data: _Input, n: int, high_bits: int) -> np.ndarray:
    low = np.frombuffer(data.take(2 * n), "<u2").astype(np.uint32)
    packed = np.frombuffer(data.take(-(-n * high_bits // 8)), np.uint8)
    bits = np.unpackbits(packed, bitorder="little", count=n * high_bits).reshape(n, high_bits)
    high = np.packbits(bits, axis=1, bitorder="little").reshape(n).astype(np.uint32)
    top = _plane(data, n).astype(np.uint32)
    return top << (16 + high_bits) | high << 16 | low
