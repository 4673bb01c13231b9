"""Measures ckptd beside its peers, interleaved in one run, and writes bench/RESULTS.md. `make bench` sets up and runs it.

BENCH=small takes gpt2-mini and a fraction of the repetitions: it shows that everything works, not how fast it is. A part
that fails is reported, and the others go on. Parts: speed, training, stall, durable, codec, restore, attached, watched,
formats; `run.py PART...` runs some of them.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import traceback

import attached
import host
import parts
import report
import watched
from serve import Server

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "bench/out"

FULL = {
    "preset": "gpt2", "warm_steps": 30, "batches": [(1, 128), (2, 256)], "speed_rounds": 3, "speed_steps": [8, 4],
    "training_rounds": 3, "every": 10, "stalls": 40, "peer_stalls": 5, "durable_rounds": 5, "codec_processes": 3,
    "codec_rounds": 2, "restore_rounds": 3, "watched_pairs": 10, "watched_block_s": 8,
    "attached_batch": (2, 256), "attached_steps": 3, "attached_rounds": 10, "attached_stalls": 8,
}  # fmt: skip
SMALL = {
    **FULL, "preset": "gpt2-mini", "warm_steps": 4, "speed_rounds": 2, "speed_steps": [3, 2], "training_rounds": 1,
    "every": 4, "stalls": 4, "peer_stalls": 2, "durable_rounds": 2, "codec_processes": 1,
    "codec_rounds": 1, "restore_rounds": 1, "watched_pairs": 3, "watched_block_s": 4, "attached_steps": 3,
    "attached_rounds": 1, "attached_stalls": 2,
}  # fmt: skip

JOB = """[job]
store = "store"
device = "cpu"
threads = {threads}
[model]
preset = "{preset}"
[data]
text = ["{text}"]
cache = "cache"
[train]
steps = 1000000
batch_size = {rows}
sequence_length = {positions}
warmup_steps = 10
schedule = "constant"
eval_every = 0
[snapshot]
every = "1000h"
"""


class Bench:
    """What the parts share: settings, programs, folders."""

    def __init__(self, settings):
        self.settings = settings
        self.root = ROOT
        self.out = OUT
        self.store = OUT / "store"
        self.saves = OUT / "saves"
        self.threads = min(2, os.cpu_count() or 1)
        self.rows, self.positions = settings["batches"][0]
        self.release = ROOT / "target/release"
        self.text = ROOT / ".cache/text"
        self.environment = {**os.environ, "BENCH_THREADS": str(self.threads), "OMP_NUM_THREADS": str(self.threads)}

    def write_job(self, rows, positions, name="job.toml"):
        values = {"rows": rows, "positions": positions, "threads": self.threads, "preset": self.settings["preset"]}
        (OUT / name).write_text(JOB.format(text=self.text, **values))
        return OUT / name

    def start_worker(self, job):
        """The worker, its training opened, its text tokenized."""
        # The number of threads is the job's; libtorch takes it from there.
        environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        command = [str(self.release / "examples/bench-worker"), str(job)]
        server = Server(command, environment, OUT / "worker.log")
        server.answer()
        return server

    def tokens(self):
        """The tokens that the worker made of the text, raw little-endian uint16."""
        return max((OUT / "cache").glob("tokens-*.bin"), key=lambda path: path.stat().st_mtime)

    def start_peers(self, rows, positions, extra=None):
        arguments = [self.tokens(), self.saves, self.settings["preset"], rows, positions]
        command = [sys.executable, str(ROOT / "bench/peers.py"), *map(str, arguments)]
        server = Server(command, {**self.environment, **(extra or {})}, OUT / "peers.log")
        server.answer()
        return server


def prepare():
    shutil.rmtree(OUT, ignore_errors=True)
    (OUT / "saves").mkdir(parents=True)


def attempt(name, results, work):
    """Runs a part; what fails is kept as text, and the next part goes on."""
    began, stolen, load = time.monotonic(), host.stolen_s(), host.load()
    print(f"bench: {name}", flush=True)
    try:
        results[name] = work()
    except Exception as error:  # noqa: BLE001 - whatever it is, the other parts are worth having
        traceback.print_exc()
        results[name] = {"failed": f"{type(error).__name__}: {error}"}
    results[name]["took_s"] = time.monotonic() - began
    results[name]["stolen_s"] = host.stolen_s() - stolen
    results[name]["load_before"] = load
    (OUT / "results.json").write_text(json.dumps(results, indent=1))
    print(f"bench: {name} took {results[name]['took_s']:.0f} s", flush=True)


def run(bench, wanted, results):
    """The parts in an order in which each finds what it needs."""
    with bench.start_worker(bench.write_job(bench.rows, bench.positions)) as ours:
        with bench.start_peers(bench.rows, bench.positions) as peers:
            def part(name, work):
                if name in wanted:
                    attempt(name, results, work)

            attempt("warm", results, lambda: parts.warm(bench, ours, peers))
            part("speed", lambda: parts.speed(bench, ours, peers))
            part("training", lambda: parts.training(bench, ours, peers))
            part("stall", lambda: parts.stall(bench, ours, peers))
            part("durable", lambda: parts.durable(bench, ours, peers))
            # What the next parts read.
            attempt("state", results, lambda: parts.leave_state(bench, ours, peers))
    for name, work in (("codec", parts.codec), ("restore", parts.restore), ("attached", attached.measure)):
        if name in wanted:
            attempt(name, results, lambda work=work: work(bench))
    if "speed" in wanted:
        attempt("speed_more", results, lambda: parts.speed_more(bench))


def formats(preset):
    """Export speeds, measured by a program of their own where it is there."""
    script = ROOT / "bench/formats.py"
    if not script.exists():
        return {"text": ""}
    done = subprocess.run([sys.executable, str(script), preset], capture_output=True, text=True, timeout=400, cwd=ROOT)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip()[-500:])
    return {"text": done.stdout}


def main():
    names = ["speed", "training", "stall", "durable", "codec", "restore", "attached", "watched", "formats"]
    wanted = sys.argv[1:] or names
    small = os.environ.get("BENCH") == "small"
    prepare()
    bench = Bench(SMALL if small else FULL)
    results = {"settings": bench.settings, "machine": host.describe(OUT), "began": time.strftime("%F %T UTC", time.gmtime())}
    try:
        if set(wanted) - {"watched", "formats"}:
            run(bench, wanted, results)
    except Exception as error:  # noqa: BLE001 - the report says so
        traceback.print_exc()
        results["programs"] = {"failed": f"{type(error).__name__}: {error}"}
    if "watched" in wanted:
        attempt("watched", results, lambda: watched.measure(bench))
    if "formats" in wanted:
        attempt("formats", results, lambda: formats(bench.settings["preset"]))
    text = report.write(results, small)
    target = OUT / "RESULTS.small.md" if small or sys.argv[1:] else ROOT / "bench/RESULTS.md"
    target.write_text(text)
    print(text)
    print(f"bench: written to {target}")
    for folder in ("store", "saves", "state", "watched", "unwatched", attached.STORE):
        shutil.rmtree(OUT / folder, ignore_errors=True)
    failed = [name for name, part in results.items() if isinstance(part, dict) and "failed" in part]
    if failed:
        sys.exit(f"bench: failed: {', '.join(failed)}; see {OUT}/*.log")


if __name__ == "__main__":
    main()
