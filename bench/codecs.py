"""Other lossless codecs on the same raw state, one core, under the benchmark's command: `codecs.py FOLDER`.

Obeys `encode CODEC ROLE` and `decode CODEC ROLE` on stdin; answers with CPU seconds of the process. `decode` compares every
byte. malloc keeps its heap, so that page faults of fresh memory are in nobody's time.
"""

import json
import os
import pathlib
import sys
import time
import zlib

MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000000", "MALLOC_TOP_PAD_": "67108864"}
if os.environ.get("MALLOC_MMAP_MAX_") != "0":
    os.environ.update(MALLOC, OMP_NUM_THREADS="1", BLOSC_NTHREADS="1")
    os.execv(sys.executable, [sys.executable, *sys.argv])

import blosc2
import zstandard
from zipnn import ZipNN


def deflate(raw):
    """As zip does it: level 6 and a CRC."""
    coder = zlib.compressobj(6, zlib.DEFLATED, -15)
    zlib.crc32(raw)
    return coder.compress(raw) + coder.flush()


def zipnn():
    return ZipNN(input_format="byte", bytearray_dtype="float32", threads=1)


def blosc(raw):
    filters = {"filters": [blosc2.Filter.SHUFFLE], "filters_meta": [0]}
    settings = {"codec": blosc2.Codec.ZSTD, "clevel": 1, "typesize": 4, "nthreads": 1, **filters}
    return blosc2.SChunk(chunksize=4 << 20, data=raw, cparams=settings, dparams={"nthreads": 1}).to_cframe()


CODECS = {
    "zip": (deflate, lambda coded: zlib.decompress(coded, -15)),
    "zstd-1": (zstandard.ZstdCompressor(level=1).compress, zstandard.ZstdDecompressor().decompress),
    "zstd-3": (zstandard.ZstdCompressor(level=3).compress, zstandard.ZstdDecompressor().decompress),
    # ZipNN changes what it is given.
    "zipnn": (lambda raw: zipnn().compress(raw), lambda coded: zipnn().decompress(coded)),
    "blosc2": (blosc, lambda coded: blosc2.schunk_from_cframe(coded)[:]),
}


def timed(work, argument):
    began = time.process_time()
    result = work(argument)
    return result, time.process_time() - began


def main():
    folder, coded = pathlib.Path(sys.argv[1]), {}
    print(json.dumps({"reply": "ready"}), flush=True)
    for line in sys.stdin:
        task, codec, role = line.split()
        raw = (folder / f"{role}.f32").read_bytes()
        if task == "encode":
            argument = bytearray(raw) if codec == "zipnn" else raw
            coded, cpu = timed(CODECS[codec][0], argument)
            reply = {"raw": len(raw), "encoded": len(coded), "cpu_s": cpu}
        else:
            decoded, cpu = timed(CODECS[codec][1], coded)
            if bytes(decoded) != raw:
                raise SystemExit(f"{codec} gives other bytes back")
            reply = {"cpu_s": cpu}
        print(json.dumps({"reply": task, **reply}), flush=True)


main()
