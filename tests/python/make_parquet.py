"""Writes the same texts as Parquet in many ways and as JSONL, with pyarrow. Argument: a folder. Leaves in it
read/NAME.parquet with read/NAME.jsonl (the column is "text", of content.parquet "content") and refused/NAME.parquet."""

import json
import random
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

target = Path(sys.argv[1])
rng = random.Random(7)
WORDS = ["the", "cat", "naïve", "日本語", "don't", "12", "😀", "\n\n", "the<|endoftext|>", '"quoted"', "\\", "\t"]


def text():
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 40)))


TEXTS = [text() for _ in range(200)] + ["", "the cat, " * 30_000] + ["again and again"] * 50
NULLS = [None if index % 5 == 0 else one for index, one in enumerate(TEXTS)] + [None] * 40


def write(name, texts, kind=pa.string(), nullable=True, column="text", **options):
    (target / "read").mkdir(parents=True, exist_ok=True)
    # Columns with leaves of their own stand before and behind.
    turns = pa.array([[{"role": "user", "content": "no"}]] * len(texts))
    table = pa.table(
        [turns, pa.array(texts, kind), pa.array(range(len(texts)))],
        schema=pa.schema([("turns", turns.type), pa.field(column, kind, nullable), ("id", pa.int64())]))
    pq.write_table(table, target / "read" / f"{name}.parquet", **options)
    lines = "".join(json.dumps({column: one}) + "\n" for one in texts)
    (target / "read" / f"{name}.jsonl").write_text(lines)


for codec in ["none", "snappy", "zstd", "gzip", "lz4"]:
    write(codec, NULLS, compression=codec, row_group_size=70)
write("required", TEXTS, nullable=False)
write("few", TEXTS[:30], row_group_size=2)
write("large", NULLS, pa.large_string())
write("categories", NULLS, pa.dictionary(pa.int32(), pa.string()))
write("content", TEXTS, column="content")
for encoding in ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"]:
    write(encoding, NULLS, data_page_version="2.0", data_page_size=1000, use_dictionary=False,
          column_encoding={"text": encoding, "id": "PLAIN", "turns.list.element.role": "PLAIN",
                           "turns.list.element.content": "PLAIN"})

(target / "refused").mkdir()
ROWS = 3
SOME = {"body": ["b"] * ROWS, "title": ["t"] * ROWS}
for name, column in {
    "list": pa.array([["a"]] * ROWS),
    "struct": pa.array([{"text": "a"}] * ROWS),
    "map": pa.array([[("a", "b")]] * ROWS, pa.map_(pa.string(), pa.string())),
    "number": pa.array(range(ROWS)),
    "bytes": pa.array([b"\xff"] * ROWS),
    "date": pa.array([1] * ROWS, pa.date32()),
    "missing": None,
}.items():
    columns = SOME if column is None else {"text": column} | SOME
    pq.write_table(pa.table(columns), target / "refused" / f"{name}.parquet")
pq.write_table(pa.table(SOME | {"text": ["a"] * ROWS}), target / "refused" / "brotli.parquet", compression="brotli")
pq.write_table(pa.table({"id": range(ROWS)}), target / "refused" / "numbers.parquet")
pq.write_table(pa.table({"text": pa.array([b"ok", b"\xffno"]).view(pa.string())}), target / "refused" / "latin.parquet")
