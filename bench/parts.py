"""What is measured, part by part. Everything that is compared is interleaved; every figure of a part is kept.

Times are of the monotonic clock as this program sees them, except where a program measures the work of its own threads.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import host
from serve import Server

ROLES = ("param", "exp_avg", "exp_avg_sq")
PEERS = ("torch", "torch+fsync", "dcp", "safetensors", "hf")
CODECS = ("zip", "zstd-1", "zstd-3", "zipnn", "blosc2")
#: glibc's malloc as ckptd sets it for itself
TUNED_MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_TOP_PAD_": "67108864"}


def warm(bench, ours, peers):
    """Trains both long enough for moments that look trained, and takes each kind of snapshot once."""
    steps = bench.settings["warm_steps"]
    replies = {"ours": ours.ask(f"train {steps} 0"), "peers": peers.ask(f"train {steps} 0 torch")}
    snapshot(ours)
    for kind in PEERS:
        peers.ask("train 1 0 torch")
        peers.ask(f"save {kind}")
    return {"loss": replies["peers"]["loss"]}


def snapshot(ours, steps=3):
    """One beside the training; returns its events and the reply that holds the time that taking it took."""
    ours.take_events("")
    reply = ours.ask(f"train {steps} 1")
    while not any(event["event"] in ("committed", "snapshot_failed") for _, event in ours.events):
        ours.ask("train 1 0")
    (begun, _), *_ = [(at, event) for at, event in ours.events if event["event"] == "snapshot_started"]
    done = ours.take_events("committed")
    if not done:
        raise RuntimeError("a snapshot failed; see the worker's events")
    at, event = done[0]
    return {"durable_s": at - begun, "stall_ms": max(event["stall_ms"], reply["take_ms"]), **keep(event), "reply": reply}


def keep(event):
    return {key: event[key] for key in ("bytes", "raw_bytes", "write_ms", "capture_ms", "step")}


def forget_old(bench):
    """Old snapshots go, but for the newest: the disk is not what is measured."""
    for path in sorted((bench.store / "snapshots").glob("*.ckpt"))[:-1]:
        path.unlink()


def speed(bench, ours, peers):
    rows, positions = bench.settings["batches"][0]
    return {"batches": [speed_of(bench, rows, positions, ours, peers, bench.settings["speed_steps"][0])]}


def speed_more(bench):
    """The other batch sizes, each with programs of its own."""
    measured = []
    for (rows, positions), steps in zip(bench.settings["batches"][1:], bench.settings["speed_steps"][1:]):
        with bench.start_worker(bench.write_job(rows, positions, f"job-{rows}x{positions}.toml")) as ours:
            with bench.start_peers(rows, positions) as peers:
                ours.ask("train 2 0")
                peers.ask("train 2 0 torch")
                measured.append(speed_of(bench, rows, positions, ours, peers, steps))
    return {"batches": measured}


def speed_of(bench, rows, positions, ours, peers, steps):
    with bench.start_peers(rows, positions, TUNED_MALLOC) as tuned:
        tuned.ask("train 2 0 torch")
        programs = {
            "ours": lambda: ours.ask(f"train {steps} 0"),
            "peers": lambda: peers.ask(f"train {steps} 0 torch"),
            "tuned": lambda: tuned.ask(f"train {steps} 0 torch"),
        }
        measured = {name: [] for name in programs}
        for _ in range(bench.settings["speed_rounds"]):
            for name, train in programs.items():
                reply = train()
                figures = {"tokens_s": rows * positions * steps / reply["wall_s"], "cpu_s": reply["cpu_s"] / steps}
                measured[name].append({**figures, "faults": reply["faults"] / steps})
    return {"rows": rows, "positions": positions, "steps": steps, **measured}


def training(bench, ours, peers):
    """Windows of `every` steps with one snapshot in them and with none, in turn."""
    every = bench.settings["every"]
    rounds = []
    for _ in range(bench.settings["training_rounds"]):
        windows = {"ours none": ours.ask(f"train {every} 0")["wall_s"]}
        taken = snapshot(ours, every)
        windows["ours"] = taken.pop("reply")["wall_s"]
        windows["ours verified"] = verified_window(bench, ours, every)
        windows["peers none"] = peers.ask(f"train {every} 0 torch")["wall_s"]
        windows["torch+fsync"] = peers.ask(f"train {every} 1 torch+fsync")["wall_s"]
        reply = peers.ask(f"train {every} 1 dcp")
        windows["dcp"] = reply["wall_s"]
        dcp = {"durable_s": peers.ask("wait dcp")["durable_s"]}
        rounds.append({"windows": windows, "ours": taken, "dcp": dcp})
        forget_old(bench)
    # A peer's save that is still being written when its window ends would look cheaper than it is.
    return {"every": every, "rounds": rounds}


def verified_window(bench, ours, every):
    """A window whose snapshot is read back, too, as the agent does it: as soon as it is durable, on one thread."""
    ours.take_events("")
    began = time.monotonic()
    wall = ours.ask("train 2 1")["wall_s"]
    left, checker = every - 2, None
    while left > 0 or not checker:
        wall += ours.ask("train 1 0")["wall_s"] if left > 0 else 0
        left -= 1
        if not checker and any(event["event"] == "committed" for _, event in ours.events):
            checker = subprocess.Popen(
                [bench.release / "ckptd", "verify", bench.store, "latest"], stdout=subprocess.DEVNULL
            )
        if time.monotonic() - began > 300:
            raise RuntimeError("a snapshot did not land")
        if left <= 0 and not checker:
            ours.wait_for("committed")
    if checker.wait(120) != 0:
        raise RuntimeError("a snapshot did not verify")
    ours.take_events("")
    return wall


def stall(bench, ours, peers):
    """How long the training thread is held up by each save."""
    measured = {"ours": []}
    for index in range(bench.settings["stalls"]):
        measured["ours"].append(snapshot(ours)["stall_ms"])
        if index % 4 == 3:
            forget_old(bench)
    for _ in range(bench.settings["peer_stalls"]):
        for kind in PEERS:
            reply = peers.ask(f"train 2 1 {kind}")
            if kind == "dcp":
                peers.ask("wait dcp")
            measured.setdefault(kind, []).append(reply["blocked_s"] * 1e3)
    return {"stall_ms": measured, "memory": ours.ask("memory")}


def durable(bench, ours, peers):
    """From the request until it is durable, while the training rests; each round beside the device's own rate."""
    rounds = []
    for _ in range(bench.settings["durable_rounds"]):
        ours.take_events("")
        ours.ask("train 1 0")
        seconds = {"ours": ours.ask("last")["durable_s"]}
        written = ours.take_events("committed")[0][1]["bytes"]
        rates = {"device_rate": host.write_rate(bench.out, written)}
        rates["cached_rate"] = host.write_rate(bench.out, written, cached=True)
        for kind in PEERS:
            if kind != "torch":
                peers.ask("train 1 0 torch")
                seconds[kind] = peers.ask(f"save {kind}")["durable_s"]
        rounds.append({"seconds": seconds, "bytes": written, **rates})
        forget_old(bench)
    return {"rounds": rounds}


def leave_state(bench, ours, peers):
    """Raw state, a verified snapshot and the peers' files for the parts that read."""
    shutil.rmtree(bench.out / "state", ignore_errors=True)
    step = ours.ask(f"dump {bench.out / 'state'}")["step"]
    ours.ask("train 1 0")
    ours.ask("last")
    verify = [bench.release / "ckptd", "verify", bench.store, "latest"]
    subprocess.run(verify, check=True, stdout=subprocess.DEVNULL)
    peers.ask("save torch+fsync")
    peers.ask("save hf")
    return {"step": step}


def codec(bench):
    """Every codec on the same bytes, role by role, in turn; CPU seconds of one core. Which memory a process has got makes a
    fifth of its speed here, so there are several processes of each kind."""
    measured = {}
    for process in range(bench.settings["codec_processes"]):
        dispatch = codec_rounds(bench, measured, process == 0)
    return {"dispatch": dispatch, "codecs": measured}


def codec_rounds(bench, measured, first):
    state = bench.out / "state"
    ours = Server([str(bench.release / "examples/bench-codec"), str(state)], log=bench.out / "codec.log")
    others = Server([sys.executable, str(pathlib.Path(__file__).parent / "codecs.py"), str(state)], log=bench.out / "codecs.log")
    with ours, others:
        dispatch = ours.answer()["dispatch"]
        others.answer()
        # One more for the memory that is touched for the first time.
        for index in range(bench.settings["codec_rounds"] + 1):
            for role in ROLES:
                for name in ("ours", *CODECS):
                    # deflate is slow and steady: once.
                    if name == "zip" and not (first and index == 0):
                        continue
                    server, words = (ours, "") if name == "ours" else (others, name + " ")
                    coded = server.ask(f"encode {words}{role}")
                    decoded = server.ask(f"decode {words}{role}")
                    figures = {"encode_s": coded["cpu_s"], "decode_s": decoded["cpu_s"]}
                    if name == "ours":
                        figures["hash_s"] = ours.ask(f"hash {role}")["cpu_s"]
                    sizes = {"raw": coded["raw"], "encoded": coded["encoded"]}
                    if index > 0 or name == "zip":
                        measured.setdefault(name, {}).setdefault(role, {**sizes, "runs": []})["runs"].append(figures)
    return dispatch


def restore(bench):
    """From a cold cache: process start to the first resumed step, and the state alone."""
    job = bench.write_job(bench.rows, bench.positions)
    rounds = []
    for _ in range(bench.settings["restore_rounds"]):
        # Their order makes no difference: each begins with its own files out of the cache.
        rounds.append({"ours": restore_ours(bench, job), **{kind: restore_peer(bench, kind) for kind in ("torch", "hf")}})
    return {"rounds": rounds}


def restore_ours(bench, job):
    """`ckptd run`, ended at once after its first step."""
    host.forget(bench.store / "snapshots")
    began, times = time.monotonic(), {}
    command = [bench.release / "ckptd", "run", job]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        for line in process.stderr:
            now = time.monotonic() - began
            if "loading the weights" in line:
                times["load_began_s"] = now
            elif " parameters on " in line:
                times["in_place_s"] = now
            elif " step " in line and "loss" in line:
                times["first_step_s"] = now
                break
    finally:
        # Nobody needs its last snapshot: the worker goes with it, and with the worker the store's lock.
        workers = [int(pid) for task in pathlib.Path(f"/proc/{process.pid}/task").glob("*/children") for pid in task.read_text().split()]
        for pid in (process.pid, *workers):
            os.kill(pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()
        until = time.monotonic() + 20
        while any(pathlib.Path(f"/proc/{pid}/exe").exists() for pid in workers) and time.monotonic() < until:
            time.sleep(0.05)
    if "first_step_s" not in times:
        raise RuntimeError(f"`ckptd run` did not resume: exit code {process.returncode}")
    return {**times, "load_s": times["in_place_s"] - times["load_began_s"]}


def restore_peer(bench, kind):
    folder = bench.saves / ("torch-fsync" if kind == "torch" else kind)
    host.forget(folder)
    arguments = [kind, folder, bench.settings["preset"], bench.rows, bench.positions, bench.tokens(), time.time()]
    command = [sys.executable, str(pathlib.Path(__file__).parent / "restore.py"), *map(str, arguments)]
    with Server(command, bench.environment, bench.out / "restore.log") as server:
        return server.answer()

