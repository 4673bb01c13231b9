"""ckptd's ranks beside PyTorch's DistributedDataParallel and the sums of gloo and Open MPI, in turn; writes bench/RANKS.md.

    bench/ranks.py [--mpi FOLDER] [--rounds N] [training] [exchange]

Training: GPT-2 124M, 16 micro-batches of 1 x 128 tokens per step; 2 ranks of one thread under ckptd and under DDP (gloo,
no_sync, malloc tuned as ckptd tunes its own), and one rank of two threads under ckptd. Exchange: the gradient of
GPT-2 124M on 2, 3 and 4 ranks, as the training does it, beside one all-reduce of as many values by gloo and by MPI. MPI
takes the example `exchange` in a folder of programs that were built with it.
"""

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
from pathlib import Path

import host
from parts import TUNED_MALLOC

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "bench/out/ranks"
RELEASE = ROOT / "target/release"
MICRO_BATCHES, POSITIONS, SUMS = 16, 128, 7
# Steps before those that are measured: memory is touched for the first time in them, and its pages are joined.
WARM, STEPS = 6, 3
PARAMETERS = 124_439_808

JOB = """[job]
store = "store-{name}"
threads = {threads}
[model]
preset = "gpt2"
dropout = 0.1
[data]
tokens = "tokens.bin"
[train]
steps = {steps}
batch_size = 1
sequence_length = {positions}
grad_accumulation = {micro_batches}
eval_every = 0
[snapshot]
every = "1000h"
[ranks]
count = {ranks}
[log]
level = "debug"
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def ranks_of(command, count, environment, launcher=()):
    """`command` once per rank; what rank 0 has printed, as JSON."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "CKPTD_RANKS_SECRET": os.urandom(16).hex()}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **shared, **environment}
    if launcher:
        done = subprocess.run([*launcher, *command], env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.strip().splitlines()[-1])
    processes = []
    for rank in range(count):
        place = {**environment, "RANK": str(rank), "WORLD_SIZE": str(count)}
        out = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
        processes.append(subprocess.Popen(command, env=place, stdout=out, text=True))
    said = processes[0].communicate()[0]
    if any(process.wait() for process in processes):
        raise RuntimeError(f"{command} failed on {count} ranks")
    return json.loads(said.strip().splitlines()[-1])


def ours(name, ranks, threads):
    """Seconds of each step."""
    shutil.rmtree(OUT / f"store-{name}", ignore_errors=True)
    values = {"name": name, "ranks": ranks, "threads": threads, "steps": WARM + STEPS, "positions": POSITIONS}
    (OUT / f"{name}.toml").write_text(JOB.format(**values, micro_batches=MICRO_BATCHES))
    command = [RELEASE / "ckptd", "run", "--log-format", "json", f"{name}.toml"]
    done = subprocess.run(command, cwd=OUT, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    steps = [line["message"] for line in lines if " done: loss" in line["message"]]
    return [float(re.search(r"([\d.]+) ms", step)[1]) / 1e3 for step in steps]


def ddp(ranks):
    numbers = map(str, (POSITIONS, MICRO_BATCHES, WARM + STEPS))
    command = [sys.executable, str(ROOT / "bench/ddp_peer.py"), "train", str(OUT / "tokens.bin"), "gpt2", *numbers]
    return ranks_of(command, ranks, TUNED_MALLOC)["seconds"]


def training(rounds):
    ways = {
        "ckptd, 2 ranks x 1 thread": lambda: ours("two", 2, 1),
        "DDP over gloo, 2 ranks x 1 thread": lambda: ddp(2),
        "ckptd, 1 rank x 2 threads": lambda: ours("one", 1, 2),
    }
    rates = {name: [] for name in ways}
    for _ in range(rounds):
        for name, measure in ways.items():
            seconds = statistics.median(measure()[WARM:])
            rates[name].append(MICRO_BATCHES * POSITIONS / seconds)
            print(f"{name}: {rates[name][-1]:.1f} tokens/s", flush=True)
    return rates


def exchange(mpi):
    example, peer = RELEASE / "examples/exchange", [sys.executable, str(ROOT / "bench/ddp_peer.py"), "allreduce"]
    found = {}
    for count in (2, 3, 4):
        # A host of more ranks than processors is what Open MPI has to be told of.
        mpirun = ["mpirun", "-n", str(count), "--oversubscribe", "--bind-to", "none"]
        ways = {
            "ckptd": lambda: ranks_of([example, "gpt2", str(SUMS)], count, {}),
            "gloo": lambda: ranks_of([*peer, str(PARAMETERS), str(SUMS)], count, TUNED_MALLOC),
        }
        if mpi:
            with_mpi = mpi / "exchange"
            ways["ckptd over MPI"] = lambda: ranks_of([with_mpi, "gpt2", str(SUMS), "mpi"], count, {}, mpirun)
            ways["MPI_Allreduce"] = lambda: ranks_of([with_mpi, "gpt2", str(SUMS), "allreduce"], count, {}, mpirun)
        found[count] = {name: [] for name in ways}
        for _ in range(2):
            for name, measure in ways.items():
                found[count][name] += measure()["seconds"]
        said = ", ".join(f"{name} {statistics.median(seconds):.2f}" for name, seconds in found[count].items())
        print(f"{count} ranks: {said} s", flush=True)
    return found


def spread(values, digits):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def report(results, load, stolen):
    versions = [host.output("mpirun", "--version").split("\n")[0]] if shutil.which("mpirun") else []
    lines = ["# Ranks, measured", "", "`make bench-ranks`; one thing works at a time, in turn.", ""]
    lines += [f"- {line}" for line in [*host.describe(OUT), *versions]]
    lines += [f"- load average at the beginning {load:.1f}; {host.stolen_s() - stolen:.1f} s stolen by the host", ""]
    if rates := results.get("training"):
        two, peer, one = rates.values()
        lines += ["GPT-2 124M, 16 micro-batches of 1 x 128 tokens per step.", "", "| | tokens/s (from, to) |", "|---|---:|"]
        lines += [f"| {name} | {spread(values, 1)} |" for name, values in rates.items()]
        ratios = [[a / b for a, b in zip(two, other)] for other in (peer, one)]
        lines += ["", f"Pair by pair: {spread(ratios[0], 2)} times DDP's, {spread(ratios[1], 2)} times one rank's.", ""]
    if found := results.get("exchange"):
        names = list(next(iter(found.values())))
        lines += ["The gradient of GPT-2 124M, summed and given to all, seconds (from, to).", ""]
        lines += ["| ranks | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
        lines += [f"| {count} | " + " | ".join(spread(row[name], 2) for name in names) + " |" for count, row in found.items()]
        lines.append("")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["training", "exchange"])
    parser.add_argument("--mpi", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    OUT.mkdir(parents=True, exist_ok=True)
    numbers = (number * number // 7 % 50_000 for number in range(1, 200_000))
    (OUT / "tokens.bin").write_bytes(b"".join(number.to_bytes(2, "little") for number in numbers))
    results, load, stolen = {}, host.load(), host.stolen_s()
    if "training" in arguments.parts:
        results["training"] = training(arguments.rounds)
    if "exchange" in arguments.parts:
        results["exchange"] = exchange(arguments.mpi)
    text = report(results, load, stolen)
    (ROOT / "bench/RANKS.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
