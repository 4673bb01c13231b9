"""A PyTorch training with ckptd's three lines in it, beside the same training with DCP and torch.save.

Windows of steps with one save in them and with none, in turn; a step is longer than what ckptd needs until its snapshot is
durable. A window may end before DCP has written: its figure then lacks the rest.
"""

import json
import os
import shutil
import subprocess
import sys
import time

import host
from serve import Server

JOB = """[job]
store = "{store}"
[snapshot]
every = "1000h"
"""
STORE = "attached"
#: Seconds for a snapshot to be read back.
VERIFIED_WITHIN_S = 120


def measure(bench):
    measured = {"sizes": bench.settings["attached_batch"], "steps": bench.settings["attached_steps"]}
    for variant in ("fused", "foreach"):
        measured[variant] = training(bench, variant)
    measured["restore"] = [restore(bench) for _ in range(bench.settings["restore_rounds"])]
    return measured


def command(bench, script, arguments):
    """`script` under `ckptd run`, and its environment: the package is built, not installed."""
    site = bench.out / "site"
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(bench.root / "crates/python/python", site)
    shutil.copy(bench.release / "deps/libckptd_native.so", site / "ckptd/_native.abi3.so")
    job = bench.out / "attached.toml"
    job.write_text(JOB.format(store=bench.out / STORE))
    run = [str(bench.release / "ckptd"), "run", "--config", str(job), "--"]
    environment = {**bench.environment, "PYTHONPATH": str(site)}
    return [*run, sys.executable, str(bench.root / "bench" / script), *map(str, arguments)], environment


def start(bench, variant, is_attached):
    rows, positions = bench.settings["attached_batch"]
    variant = {"BENCH_OPTIMIZER": variant}
    if not is_attached:
        return bench.start_peers(rows, positions, variant)
    arguments = [bench.tokens(), bench.saves, bench.settings["preset"], rows, positions, "attached"]
    program, environment = command(bench, "peers.py", arguments)
    server = Server(program, {**environment, **variant}, bench.out / "attached.log")
    server.answer()
    return server


def verified(bench):
    """Waits until the newest snapshot is read back."""
    until = time.monotonic() + VERIFIED_WITHIN_S
    while time.monotonic() < until:
        listed = subprocess.run([bench.release / "ckptd", "list", "--json", bench.out / STORE], capture_output=True, check=True)
        snapshots = json.loads(listed.stdout)
        if snapshots and snapshots[0]["state"] == "verified":
            return
        time.sleep(0.2)
    raise RuntimeError(f"a snapshot was not verified; see {bench.out}/attached.log")


def training(bench, variant):
    shutil.rmtree(bench.out / STORE, ignore_errors=True)
    settings, steps = bench.settings, bench.settings["attached_steps"]
    with start(bench, variant, is_attached=True) as ours, start(bench, variant, is_attached=False) as peers:
        ours.ask("train 2 0 ckptd")
        peers.ask("train 2 0 dcp")
        memory = {"ours": ours.ask("memory 2 ckptd"), "dcp": peers.ask("memory 2 dcp")}
        verified(bench)
        memory["ours"]["agent"] = peak_of(ours.process.pid)
        # The first three snapshots also look for writers that nobody announces, as one in 50 does later.
        for _ in range(2):
            for program, kind in ((ours, "ckptd"), (peers, "dcp")):
                program.ask(f"train 2 1 {kind}")
                program.ask(f"wait {kind}")
            verified(bench)
        rounds = []
        for _ in range(settings["attached_rounds"]):
            windows = {"ours none": ours.ask(f"train {steps} 0 ckptd"), "peers none": peers.ask(f"train {steps} 0 dcp")}
            windows["ours"] = {**ours.ask(f"train {steps} 1 ckptd"), **ours.ask("wait ckptd")}
            verified(bench)
            for kind in ("dcp", "torch+fsync"):
                windows[kind] = {**peers.ask(f"train {steps} 1 {kind}"), **peers.ask(f"wait {kind}")}
            rounds.append(windows)
        stalls = {"ours": [], "dcp": []}
        for _ in range(settings["attached_stalls"]):
            for name, program, kind in (("ours", ours, "ckptd"), ("dcp", peers, "dcp")):
                reply = {**program.ask(f"train 2 1 {kind}"), **program.ask(f"wait {kind}")}
                stalls[name].append(reply["blocked_s"] * 1e3 + reply["stall_ms"])
    return {"memory": memory, "rounds": rounds, "stall_ms": stalls}


def peak_of(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def restore(bench):
    """From a cold cache: the load alone, and until the first resumed step."""
    rows, positions = bench.settings["attached_batch"]
    times = {}
    for kind, folder in (("ckptd", bench.out / STORE), ("torch", bench.saves / "torch-fsync")):
        host.forget(folder)
        arguments = [kind, folder, bench.settings["preset"], rows, positions, bench.tokens(), time.time()]
        if kind == "ckptd":
            program, environment = command(bench, "restore.py", arguments)
        else:
            program = [sys.executable, str(bench.root / "bench/restore.py"), *map(str, arguments)]
            environment = {**os.environ, **bench.environment}
        with Server(program, environment, bench.out / "restore.log") as server:
            times[kind] = server.answer()
    return times
