"""Replication beside rclone, s5cmd and aws, paired in one run: `make bench-remote` writes bench/REMOTE.md.

Everything talks to the test kit's object store in memory, a process of its own whose processor time counts apart. Of
each kind of measurement the programs work in turn, in another order each round; shares are medians of those of the
rounds, so that a machine that is busy for a while does not decide. BENCH=short takes few rounds and short blocks,
BENCH=small gpt2-mini besides, into bench/out. Parts: server, upload, resume, training; `remote.py PART...` runs some.

- server: the stand-in alone, at a client that only sends and receives: it must not be what the others wait for.
- upload: the newest snapshot of a store, its file read from the disk and not from the page cache, from the start of the
  program to its end; ckptd's ends with the commit marker.
- resume: an empty folder and the URL, until the first step after the resume was done; beside rclone's copy of a state.pt
  and a Python process that loads it (memory-mapped, the model on the meta device) and trains a step.
- training: at `max_rate` of a link of 100 Mbit/s, blocks of a running job while a snapshot is sent and while none is."""

import http.client
import itertools
import json
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import time

import host
from report import Goals, table

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "bench/out/remote"
RELEASE = ROOT / "target/release"
CLIENTS = ROOT / ".cache/clients/bin"
RATE = 12_500_000
TICK = os.sysconf("SC_CLK_TCK")
FULL = {"preset": "gpt2", "warm_steps": 30, "rounds": 5, "resumes": 3, "blocks": 4, "block_s": 60.0, "rate": RATE}
SMALL = {**FULL, "preset": "gpt2-mini", "rounds": 2, "resumes": 1, "blocks": 2, "block_s": 2.0, "rate": RATE // 2}
SHORT = {**FULL, "rounds": 2, "resumes": 1, "blocks": 3, "block_s": 30.0}
NAMES = {"rclone": "rclone", "s5cmd": "s5cmd", "aws": "aws s3 cp"}
median = statistics.median
JOB = """[job]
store = "store"
device = "cpu"
threads = {threads}
[model]
preset = "{preset}"
[data]
text = ["{text}"]
cache = "{cache}"
[train]
steps = {steps}
batch_size = 1
sequence_length = 128
warmup_steps = 10
schedule = "constant"
eval_every = 0
[snapshot]
every = "1000h"
[retention]
keep_last = 2
"""


class ObjectServer:
    """The stand-in, and what it uses."""

    # Freed memory serves again. Fresh pages for each object would take more than half of the time that a body takes.
    MALLOC = "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"

    def __init__(self):
        environment = {**os.environ, "GLIBC_TUNABLES": self.MALLOC}
        self.process = subprocess.Popen(
            [RELEASE / "object-server"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.url = self.process.stdout.readline().strip()

    def cpu_s(self):
        return cpu_of(self.process.pid)

    def memory_mb(self):
        return memory_of(self.process.pid, "VmHWM")

    def delete(self, path):
        self.ask("DELETE", path)

    def ask(self, method, path):
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=60)
        connection.request(method, f"/bench/{path}")
        answer = connection.getresponse().read().decode()
        connection.close()
        return answer

    def empty(self, prefix=""):
        for key in self.ask("GET", f"?list-type=2&prefix={prefix}").split("<Key>")[1:]:
            self.delete(key.split("</Key>")[0])

    def stop(self):
        self.process.stdin.close()
        self.process.wait(60)


def server(bench, _made):
    """What the stand-in takes and gives on one connection, in bytes a second."""
    body, name = bytes(64 << 20), "/bench/server"
    connection = http.client.HTTPConnection(bench.server.url.removeprefix("http://"), timeout=60)
    connection.connect()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    taken, given, buffer = [], [], bytearray(1 << 20)
    for _ in range(16):
        began = time.perf_counter()
        connection.request("PUT", name, body)
        connection.getresponse().read()
        taken.append(len(body) / (time.perf_counter() - began))
        began, received = time.perf_counter(), 0
        connection.request("GET", name)
        answer = connection.getresponse()
        while part := answer.readinto(buffer):
            received += part
        given.append(received / (time.perf_counter() - began))
    connection.close()
    return {"taken": taken, "given": given}


def write_server(part, _made, goals):
    rows = []
    for what, does in (("taken", "takes"), ("given", "gives")):
        rates = [rate / 1e9 for rate in part[what]]
        goals.at_least(f"the stand-in alone {does} (GB/s)", median(rates), 1)
        rows.append((f"{does}, GB/s", spread(rates)))
    return "One connection, 64 MiB at a time, the client's own time included.\n\n" + table(("", "median (from, to)"), rows)


def cpu_of(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def memory_of(pid, what):
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(what))


class Bench:
    def __init__(self, settings):
        self.settings, self.server = settings, ObjectServer()
        self.threads = min(2, os.cpu_count() or 1)
        region = {"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1"}
        keys = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", **region}
        rclone = {"TYPE": "s3", "PROVIDER": "Minio", "ENDPOINT": self.server.url, "ACCESS_KEY_ID": "bench"}
        # The stand-in hashes nothing for its tags, which rclone would compare with MD5s.
        rclone |= {"SECRET_ACCESS_KEY": "bench", "NO_CHECK_BUCKET": "true", "USE_MULTIPART_ETAG": "false"}
        # rclone of Debian ends where this names a file that it cannot read.
        kept = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
        self.environment = {
            **kept, **keys, "AWS_ENDPOINT_URL": self.server.url, "S3_ENDPOINT_URL": self.server.url, "BENCH_THREADS": str(self.threads),
            **{f"RCLONE_CONFIG_BENCH_{name}": value for name, value in rclone.items()}, "NO_PROXY": "127.0.0.1",
        }  # fmt: skip

    def write_job(self, folder, steps, more=""):
        folder.mkdir(parents=True, exist_ok=True)
        values = {"threads": self.threads, "preset": self.settings["preset"], "steps": steps}
        text = JOB.format(**values, text=ROOT / ".cache/text", cache=OUT / "cache")
        (folder / "job.toml").write_text(text + more)
        return folder / "job.toml"

    def ckptd(self, *arguments):
        return [str(RELEASE / "ckptd"), *map(str, arguments)]

    def run(self, *command, **options):
        """Runs it to its end; what it used."""
        began, served = time.perf_counter(), self.server.cpu_s()
        with open(OUT / "programs.log", "ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command], env=self.environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=log, **options)  # fmt: skip
            _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - began
        if process.returncode:
            raise RuntimeError(f"{command} ended with {process.returncode}; see {OUT}/programs.log")
        return {
            "wall_s": wall, "cpu_s": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss * 1024 / 1e6,
            "server_s": self.server.cpu_s() - served,
        }  # fmt: skip

    def clients(self):
        """How each program that is there copies a file to an object, and an object to standard output."""
        rclone = shutil.which("rclone") or ROOT / ".cache/rclone/usr/bin/rclone"
        found = {
            "rclone": ([rclone, "copyto"], "bench:bench/", [rclone, "cat"]),
            "s5cmd": ([CLIENTS / "s5cmd", "cp"], "s3://bench/", [CLIENTS / "s5cmd", "cat"]),
            "aws": ([CLIENTS / "aws", "s3", "cp", "--no-progress"], "s3://bench/", [CLIENTS / "aws", "s3", "cp"]),
        }
        return {name: client for name, client in found.items() if pathlib.Path(client[0][0]).exists()}


def prepare(bench):
    """A store with a verified snapshot, and the same training's state in PyTorch."""
    shutil.rmtree(OUT, ignore_errors=True)
    job = bench.write_job(OUT / "home", bench.settings["warm_steps"])
    bench.run(*bench.ckptd("run", job))
    tokens = max((OUT / "cache").glob("tokens-*.bin"), key=lambda path: path.stat().st_mtime)
    state = OUT / "state/state.pt"
    state.parent.mkdir()
    bench.run(sys.executable, ROOT / "bench/remote_peer.py", "save", state, bench.settings["preset"], tokens)
    snapshot = max((OUT / "home/store/snapshots").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    listed = subprocess.run(bench.ckptd("list", "--json", OUT / "home/store"), check=True, capture_output=True)
    raw = json.loads(listed.stdout)[0]["raw_bytes"]
    return {"snapshot": snapshot, "bytes": snapshot.stat().st_size, "raw": raw, "state": state, "tokens": tokens}


def in_turn(names, rounds, work):
    """What `work` measures of each, round by round."""
    measured = {name: [] for name in names}
    orders = itertools.cycle(list(itertools.permutations(names))[:: max(1, len(names) + 1)])
    for order in itertools.islice(orders, rounds):
        for name in order:
            os.sync()
            measured[name].append(work(name))
    return measured


def upload(bench, made):
    clients = bench.clients()
    whole = bench.write_job(OUT / "whole", 1, '[remote]\nurl = "s3://bench/whole"\nverify = "whole"\n')
    (OUT / "whole/store").unlink(missing_ok=True)
    (OUT / "whole/store").symlink_to(OUT / "home/store")

    def send(name):
        host.forget(made["snapshot"].parent)
        if name in ("ours", "ours, whole"):
            target = OUT / "home/store" if name == "ours" else whole  # the job file says how it is checked
            used = bench.run(*bench.ckptd("push", target, "s3://bench/job"))
        else:
            client, reads = name.split()[0], name.endswith("read")
            copy, place, cat = clients[client]
            used = bench.run(*copy, made["snapshot"], f"{place}object")
            if reads:
                arguments = [f"{place}object"] if client != "aws" else ["--no-progress", f"{place}object", "-"]
                back = bench.run(*cat, *arguments)
                used = {key: max(value, back[key]) if key == "peak_mb" else value + back[key] for key, value in used.items()}
        bench.server.empty()
        return used

    names = ["ours", *clients, "ours, whole", *(f"{name} read" for name in clients)]
    rounds = in_turn(names, bench.settings["rounds"], send)
    return {"rounds": rounds, "bytes": made["bytes"], "server_mb": bench.server.memory_mb()}


def resume(bench, made):
    steps = bench.settings["warm_steps"] + 1
    job = bench.write_job(OUT / "home", steps, '[remote]\nurl = "s3://bench/job"\n')
    bench.run(*bench.ckptd("push", job, "s3://bench/job"))
    copy, place, _ = bench.clients()["rclone"]
    bench.run(*copy, made["state"], f"{place}state.pt")
    peer = [sys.executable, ROOT / "bench/remote_peer.py", "resume"]

    def start(name):
        folder = OUT / "empty"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for source in (made["state"].parent, OUT / "cache"):
            host.forget(source)
        began = time.perf_counter()
        if name == "theirs":
            fetched = bench.run(*copy, f"{place}state.pt", folder / "state.pt")["wall_s"]
            bench.run(*peer, folder / "state.pt", bench.settings["preset"], made["tokens"])
            return {"wall_s": time.perf_counter() - began, "fetched_s": fetched}
        return first_step(bench, folder, job, began)

    return {"rounds": in_turn(["ours", "theirs"], bench.settings["resumes"], start), "state": made["state"].stat().st_size}


class Running:
    """A job that runs, and what it says of itself."""

    def __init__(self, bench, job, folder, *options):
        self.socket = folder / "store/status.sock"
        self.log = folder / "log"
        self.process = subprocess.Popen(
            bench.ckptd("run", job, *options), env=bench.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=self.log.open("w"), cwd=folder)  # fmt: skip

    def ask(self, request="status", **more):
        """None where nobody listens yet."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            try:
                client.connect(str(self.socket))
            except OSError:
                if self.process.poll() is not None:
                    raise RuntimeError(f"the job ended with {self.process.returncode}; see {self.log}") from None
                return None
            client.sendall(json.dumps({"request": request, **more}).encode() + b"\n")
            with client.makefile() as answer:
                return json.loads(answer.read() or "null")

    def until(self, what, pause=0.05, limit=900):
        """The first report of which `what` is true."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            report = self.ask()
            if report and what(report):
                return report
            time.sleep(pause)
        raise RuntimeError(f"waited for too long; see {self.log}")

    def stop(self):
        """As it is: nothing more is saved or sent."""
        if self.process.poll() is None:
            self.ask("stop", now=True)
            self.process.wait(600)


def first_step(bench, folder, job, began):
    """Of a machine that has the job file alone."""
    endless = job.read_text().replace(f"steps = {bench.settings['warm_steps'] + 1}", "steps = 1000000")
    (folder / "job.toml").write_text(endless)
    running = Running(bench, folder / "job.toml", folder, "--accept-changes")
    try:
        running.until(lambda report: report["step"] > bench.settings["warm_steps"], pause=0.01)
        wall = time.perf_counter() - began
        peak = memory_of(running.process.pid, "VmHWM")
    finally:
        running.stop()
    return {"wall_s": wall, "peak_mb": peak}


def training(bench, made):
    """Blocks in pairs, the one with an upload now first and now second, of one job that runs."""
    settings, folder = bench.settings, OUT / "running"
    job = bench.write_job(folder, 1_000_000, f'[remote]\nurl = "s3://bench/running"\nmax_rate = "{settings["rate"]}B"\n')
    running = Running(bench, job, folder)
    pairs = []
    try:
        running.until(lambda report: report["step"] >= 5)
        for _ in range(settings["blocks"]):
            before = block(bench, running)
            running.ask("snapshot")
            running.until(lambda report: report["snapshots"]["verified"] > len(pairs))
            on = block(bench, running)
            if running.ask()["remote"]["missing"] == 0:
                raise RuntimeError("the upload was over before its block")
            running.until(lambda report: report["remote"]["missing"] == 0, pause=1)
            after = block(bench, running)
            pairs.append({"before": before, "on": on, "after": after})
            # The stand-in has no room for all of them.
            bench.server.empty("running/data/")
        peak = memory_of(running.process.pid, "VmHWM")
    finally:
        running.stop()
    return {"pairs": pairs, "peak_mb": peak, "rate": settings["rate"], "block_s": settings["block_s"]}


def block(bench, running):
    """Steps a second between the first and the last step that ended in a block, and the agent's processor time."""
    pid, began = running.process.pid, time.monotonic()
    cpu, steps = cpu_of(pid), []
    while time.monotonic() < began + bench.settings["block_s"]:
        step = running.ask()["step"]
        if not steps or step != steps[-1][0]:
            steps.append((step, time.monotonic()))
        time.sleep(0.05)
    wall = time.monotonic() - began
    # The first one that was seen may have ended long before.
    (first, first_at), (last, last_at) = steps[1], steps[-1]
    return {"steps_per_s": (last - first) / (last_at - first_at), "cpu_share": (cpu_of(pid) - cpu) / wall / os.cpu_count()}


#: Student's t of 95 % on one side, by the degrees of freedom from 1
STUDENT = [6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812]


def lower_bound(values):
    """Above which the mean is with 95 % certainty."""
    freedom = min(len(values) - 1, len(STUDENT))
    return statistics.mean(values) - STUDENT[freedom - 1] * statistics.stdev(values) / len(values) ** 0.5


def shares(rounds, ours, of, what="wall_s"):
    """Ours over the least of the others, round by round."""
    return [mine[what] / min(rounds[name][at][what] for name in of) for at, mine in enumerate(rounds[ours])]


def spread(values, form="{:.2f}"):
    return f"{form.format(median(values))} ({form.format(min(values))} to {form.format(max(values))})"


def write_upload(part, made, goals):
    rounds, size = part["rounds"], part["bytes"] / 1e6
    clients = [name for name in NAMES if name in rounds]
    titles = {"ours": "**ckptd push**", "ours, whole": '**ckptd push**, `verify = "whole"`'}
    titles |= {f"{name}{more}": NAMES[name] + (" and read back" if more else "") for name in clients for more in ("", " read")}
    rows = []
    for name, taken in rounds.items():
        of = [f"{client} read" for client in clients] if "whole" in name or "read" in name else clients
        share = f"{median(shares(rounds, name, of)):.2f}" if "ours" in name else ""
        cpu = median([1e3 * used["cpu_s"] / size for used in taken])
        peak, served = (max(used["peak_mb"] for used in taken), median([used["server_s"] for used in taken]))
        rows.append((titles[name], spread([used["wall_s"] for used in taken]), share, f"{cpu:.2f}", f"{peak:.0f}", f"{served:.2f}"))
    goals.at_most("upload's wall time over that of the fastest", median(shares(rounds, "ours", clients)), 0.9)
    back = [f"{name} read" for name in clients]
    goals.at_most("the same, all of it read back", median(shares(rounds, "ours, whole", back)), 0.9)
    for name, limit in (("rclone", 0.2), ("s5cmd", 0.4)):
        if name in clients:
            goals.at_most(f"CPU time per MB over {name}'s", median(shares(rounds, "ours", [name], "cpu_s")), limit)
    goals.at_most("peak memory of an upload (MB)", max(used["peak_mb"] for used in rounds["ours"]), 96, "{:.0f}")
    goals.at_most("the same, all of it read back", max(used["peak_mb"] for used in rounds["ours, whole"]), 96, "{:.0f}")
    goals.at_most("bytes sent per snapshot over the state's", made["bytes"] / made["raw"], 0.82, "{:.3f}")
    missing = [NAMES[name] for name in NAMES if name not in clients]
    lines = [f"One snapshot of {size:.0f} MB, of a state of {made['raw'] / 1e6:.0f} MB; {len(rounds['ours'])} rounds; CPU in ms per MB."]
    lines.append(f"Not to be had here: {', '.join(missing)}." if missing else "")
    head = ("", "seconds (from, to)", "share of the fastest", "CPU", "peak MB", "stand-in's CPU s")
    return "\n".join(filter(None, lines)) + "\n\n" + table(head, rows) + WHOLE


WHOLE = """
ckptd's first row is `verify = "auto"`: the store was seen to take a body with a right CRC-64 and to refuse one with a
wrong one, and has compared that of every part. `verify = "whole"` reads all of it back and compares the hash of every
chunk; beside it the others copy the object to their standard output afterwards, and compare nothing.
"""


def write_resume(part, made, goals):
    rounds = part["rounds"]
    ratios = shares(rounds, "ours", ["theirs"])
    goals.at_most("empty machine to first resumed step, over rclone + torch.load", median(ratios), 0.5)
    fetched = median([taken["fetched_s"] for taken in rounds["theirs"]])
    rows = [
        ("**ckptd run**", spread([taken["wall_s"] for taken in rounds["ours"]]), f"{median(ratios):.2f}"),
        (f"rclone ({fetched:.2f} s), then torch.load and a step", spread([taken["wall_s"] for taken in rounds["theirs"]]), ""),
    ]
    text = f"{len(ratios)} in turn, process start included; the state.pt has {part['state'] / 1e6:.0f} MB.\n\n"
    return text + table(("", "seconds (from, to)", "share"), rows)


def write_training(part, _made, goals):
    ratios = [pair["on"]["steps_per_s"] / ((pair["before"]["steps_per_s"] + pair["after"]["steps_per_s"]) / 2) for pair in part["pairs"]]
    cpu = [100 * pair["on"]["cpu_share"] for pair in part["pairs"]]
    idle = [100 * pair[when]["cpu_share"] for pair in part["pairs"] for when in ("before", "after")]
    goals.at_most("agent's CPU at 100 Mbit/s (% of the machine)", median(cpu), 2)
    goals.at_least("tokens/s with over without, lower 95 % bound", lower_bound(ratios), 0.97, "{:.3f}")
    goals.at_most("peak memory of the agent of a running job (MB)", part["peak_mb"], 96, "{:.0f}")
    rate = [128 * pair["before"]["steps_per_s"] for pair in part["pairs"]]
    rows = [
        ("tokens/s without", spread(rate, "{:.0f}")),
        ("with over without, of each pair", ", ".join(f"{ratio:.3f}" for ratio in ratios)),
        ("the mean, and its lower 95 % bound (Student's t)", f"{statistics.mean(ratios):.3f}, {lower_bound(ratios):.3f}"),
        ("agent's CPU while it sends, % of the machine", spread(cpu)),
        ("while it does not", spread(idle)),
    ]
    text = f"`max_rate` = {part['rate']} bytes a second; blocks of {part['block_s']:.0f} s, one without before and after each with.\n\n"
    return text + table(("", ""), rows)


PARTS = {
    "server": ("The stand-in alone", server, write_server),
    "upload": ("Upload, from the start to the marker", upload, write_upload),
    "resume": ("From an empty machine to the first step", resume, write_resume),
    "training": ("Beside a training, at the rate of a slow link", training, write_training),
}  # fmt: skip


def main():
    small = os.environ.get("BENCH") == "small"
    wanted = sys.argv[1:] or list(PARTS)
    bench = Bench({"small": SMALL, "short": SHORT}.get(os.environ.get("BENCH"), FULL))
    goals, sections, results, began = Goals(), [], {}, time.strftime("%F %T UTC", time.gmtime())
    load, stolen = host.load(), host.stolen_s()
    try:
        made = prepare(bench)
        for name in wanted:
            title, measure, show = PARTS[name]
            print(f"bench: {name}", flush=True)
            results[name] = measure(bench, made)
            bench.server.empty()
            (OUT / "results.json").write_text(json.dumps(results, indent=1))
            sections.append(f"## {title}\n\n{show(results[name], made, goals)}")
    finally:
        bench.server.stop()
    how = f"BENCH={os.environ['BENCH']} " if os.environ.get("BENCH") else ""
    tools = [host.output(*version) for version in versions(bench)]
    head = [
        "# Replication, measured\n", f"`{how}make bench-remote`, {began}; {bench.settings['preset']} with AdamW, {bench.threads} threads.\n",
        *(f"- {line}" for line in [*host.describe(OUT), ", ".join(line.split("\n")[0] for line in tools)]),
        f"- load average at the beginning {load:.1f}, at the end {host.load():.1f}; {host.stolen_s() - stolen:.1f} s stolen by the host\n",
        "## What was promised\n", table(("figure", "wanted", "measured", "held"), goals.rows),
    ]  # fmt: skip
    target = OUT / "REMOTE.md" if small or sys.argv[1:] else ROOT / "bench/REMOTE.md"
    target.write_text("\n".join([*head, *sections]))
    print(target.read_text())
    print(f"bench: written to {target}")
    for name in ("home", "state", "empty", "running", "whole"):
        shutil.rmtree(OUT / name, ignore_errors=True)


def versions(bench):
    flags = {"rclone": "version", "s5cmd": "version", "aws": "--version"}
    return [(str(client[0][0]), flags[name]) for name, client in bench.clients().items()]


if __name__ == "__main__":
    main()
