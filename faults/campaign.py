#!/usr/bin/env python3
"""Runs the parts of the fault campaign and prints one table. What a part is, is said in faults/README.md.

Invariant: a row says "0 violations" only for points that were tried; what could not be tried is "not run" and why.
Deliberately not here: any fault."""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import mutant

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXERCISER = ROOT / "target/faults/exerciser"


def main() -> int:
    options = arguments()
    parts = [p for p in sorted((ROOT / "faults/parts").iterdir()) if os.access(p, os.X_OK) and p.is_file()]
    if options.only:
        parts = [p for p in parts if any(word in p.name for word in options.only)]
    if not parts:
        print("faults: no part has such a name; the parts are in faults/parts/", file=sys.stderr)
        return 2
    began = time.monotonic()
    mutant.build_exerciser()
    rows, broken = [], False
    for part in parts:
        found, ok = run(part, options)
        rows += found
        broken |= not ok
    print_table(rows)
    print(f"{time.monotonic() - began:.0f} s in all; again: faults/campaign.py --seed {options.seed} --scale {options.scale}")
    failed = broken or any(row.get("violations") for row in rows)
    return 1 if failed else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="chooses the points (default 1)")
    parser.add_argument("--scale", choices=["full", "short"], default="full")
    parser.add_argument("--only", action="append", metavar="WORD", help="parts whose name has WORD in it; may be repeated")
    return parser.parse_args()


def run(part: pathlib.Path, options: argparse.Namespace) -> tuple[list[dict], bool]:
    """Runs one part; its rows, and whether it ended well."""
    scratch = tempfile.mkdtemp(prefix="ckptd-faults-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    environment = os.environ | {
        "CKPTD_FAULTS": str(EXERCISER),
        "CKPTD_BIN": os.environ.get("CKPTD_BIN", str(ROOT / "target/release")),
        "FAULTS_SCRATCH": scratch,
    }
    command = [str(part), "--seed", str(options.seed), "--scale", options.scale]
    began = time.monotonic()
    print(f"faults: {part.name} ...", file=sys.stderr)
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    rows, ok = [], done.returncode == 0
    for line in filter(None, map(str.strip, done.stdout.splitlines())):
        try:
            rows.append(json.loads(line))
            rows[-1]["kind"]
        except (ValueError, KeyError, TypeError):
            print(f"faults: {part.name} printed what is no row: {line}", file=sys.stderr)
            ok = False
    rows = summed(rows)
    for row in rows:
        row.setdefault("seed", options.seed)
        row.setdefault("replay", f"faults/campaign.py --only {part.name} --seed {options.seed} --scale {options.scale}")
    if not ok:
        rows.append({"kind": f"{part.name} (the part failed, exit {done.returncode})", "points": 0, "violations": 1,
                     "seed": options.seed, "replay": " ".join(command)})
    print(f"faults: {part.name} took {time.monotonic() - began:.1f} s", file=sys.stderr)
    return rows, ok


def summed(rows: list[dict]) -> list[dict]:
    kinds: dict[str, dict] = {}
    for row in rows:
        have = kinds.setdefault(row["kind"], row)
        if have is row:
            continue
        for field in ("points", "distinct", "violations"):
            if field in row:
                have[field] = have.get(field, 0) + row[field]
        have["examples"] = (have.get("examples") or []) + (row.get("examples") or [])
        # A kind of which one share was not run was not run.
        if "not_run" in row:
            have["not_run"] = row["not_run"]
    return list(kinds.values())


def print_table(rows: list[dict]) -> None:
    header = ("kind", "points", "distinct", "violations", "seed")
    cells = [header]
    for row in rows:
        if "not_run" in row:
            cells.append((row["kind"], "not run", "", "", row["not_run"]))
        else:
            cells.append((row["kind"], *(f"{row[f]:,}" if f in row and row[f] is not None else ""
                                         for f in header[1:4]), str(row["seed"])))
    widths = [max(len(str(row[i])) for row in cells) for i in range(4)]
    for i, row in enumerate(cells):
        numbers = "  ".join(str(cell).rjust(width) for cell, width in zip(row[1:4], widths[1:]))
        print(f"{str(row[0]).ljust(widths[0])}  {numbers}  {row[4]}")
        if i == 0:
            print("-" * (sum(widths) + 14))
    for row in rows:
        if row.get("violations"):
            print(f"\n{row['kind']}: {row['violations']} violations; again: {row['replay']}")
            for example in (row.get("examples") or [])[:5]:
                print(f"  {example}")


if __name__ == "__main__":
    sys.exit(main())
