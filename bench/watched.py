"""What it costs to be watched: the history kept, three clients on the event stream and a scrape each second, against
none of it.

Two sessions of the same training are there at once, and only one of them goes on at a time, in turn: the other one is
stopped (SIGSTOP). The one that is not watched writes no history, since a folder lies where its first file would be, and
has no page.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import threading
import time
import urllib.request

CLIENTS = 3
#: Student's t of 95 % on both sides, by the degrees of freedom from 1
STUDENT = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131]
#: Until the training has left its beginning behind, and until a block has.
WARM_STEP = 20
SETTLE_S = 1.0
TIMEOUT_S = 120

JOB = """[job]
threads = {threads}
[model]
preset = "gpt2-mini"
[data]
text = ["{text}"]
cache = "{cache}"
[train]
steps = 1000000
batch_size = 1
sequence_length = 64
warmup_steps = 10
schedule = "constant"
eval_every = 0
[snapshot]
every = "1000h"
{status}
"""


class Session:
    """A training by `ckptd run`, and the processor time of its processes."""

    def __init__(self, bench, folder, is_watched):
        self.folder, self.port, self.release = folder, free_port() if is_watched else None, bench.release
        shutil.rmtree(folder, ignore_errors=True)
        self.store = folder / "checkpoints/job"
        self.store.mkdir(parents=True)
        if not is_watched:
            (self.store / "history/00000000.growing").mkdir(parents=True)
        status = f'[status]\nhttp = "127.0.0.1:{self.port}"\nhttp_open = true\n' if is_watched else ""
        text = JOB.format(threads=bench.threads, text=bench.text, cache=bench.out / "cache", status=status)
        (folder / "job.toml").write_text(text)
        self.log = open(folder / "log", "wb")
        command = [str(self.release / "ckptd"), "run", str(folder / "job.toml")]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        self.pid, until = self.process.pid, time.monotonic() + TIMEOUT_S
        while not (status := self.ask()) or status["step"] < WARM_STEP:
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"a session did not begin; see {folder}/log")
            time.sleep(0.2)
        self.worker = status["worker"]["pid"]

    def ask(self):
        done = subprocess.run([str(self.release / "ckptd"), "status", "--json", str(self.store)], capture_output=True, text=True)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def signal(self, number):
        for pid in (self.worker, self.pid):
            os.kill(pid, number)

    def block(self, seconds):
        """Processor time of agent and worker and the steps in a block, the other session standing still."""
        self.signal(signal.SIGCONT)
        time.sleep(SETTLE_S)
        step, agent, worker, began = self.ask()["step"], cpu_s(self.pid), cpu_s(self.worker), time.monotonic()
        time.sleep(seconds)
        wall = time.monotonic() - began
        agent, worker = cpu_s(self.pid) - agent, cpu_s(self.worker) - worker
        steps = self.ask()["step"] - step
        self.signal(signal.SIGSTOP)
        return {"wall_s": wall, "agent_s": agent, "worker_s": worker, "steps": steps}

    def end(self):
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.process.terminate()
            self.process.wait(timeout=TIMEOUT_S)
        self.log.close()


class Watchers:
    """Three clients on the event stream, and a scrape each second while the session goes on."""

    def __init__(self, port):
        self.port, self.is_over, self.scrapes, self.events = port, threading.Event(), 0, [0] * CLIENTS
        self.goes_on = threading.Event()
        works = [lambda n=n: self.listen(n) for n in range(CLIENTS)] + [self.scrape]
        self.threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in self.threads:
            thread.start()

    def listen(self, number):
        with socket.create_connection(("127.0.0.1", self.port)) as stream:
            stream.settimeout(1)
            stream.sendall(f"GET /jobs/0/events HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n\r\n".encode())
            while not self.is_over.is_set():
                try:
                    received = stream.recv(1 << 20)
                except TimeoutError:
                    continue
                if not received:
                    return
                self.events[number] += received.count(b"event: ")

    def scrape(self):
        while not self.is_over.is_set():
            if self.goes_on.wait(timeout=1):
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
                        self.scrapes += b"ckptd_training_steps_total" in answer.read()
                except OSError:
                    # The session was stopped meanwhile.
                    pass
                time.sleep(1)

    def end(self):
        self.is_over.set()
        for thread in self.threads:
            thread.join(timeout=10)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cpu_s(pid):
    """User and system time of all threads, to the nanosecond where the scheduler says it."""
    total = 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except OSError:
            # A thread that has just ended.
            pass
    return total / 1e9


def measure(bench):
    """Pairs of blocks, one watched and one not, in an order that changes."""
    settings, sessions = bench.settings, []
    watchers = None
    try:
        none = Session(bench, bench.out / "unwatched", False)
        sessions.append(none)
        none.signal(signal.SIGSTOP)
        watched = Session(bench, bench.out / "watched", True)
        sessions.append(watched)
        watchers = Watchers(watched.port)
        watched.signal(signal.SIGSTOP)
        pairs = []
        for number in range(settings["watched_pairs"]):
            pair = {}
            for name, session in (("none", none), ("watched", watched))[:: 1 if number % 2 else -1]:
                if name == "watched":
                    watchers.goes_on.set()
                pair[name] = session.block(settings["watched_block_s"])
                watchers.goes_on.clear()
            pairs.append(pair)
        kept = sum(path.stat().st_size for path in (watched.store / "history").iterdir())
    finally:
        if watchers:
            watchers.end()
        for session in sessions:
            session.end()
    if not all(watchers.events) or not watchers.scrapes or not kept:
        raise RuntimeError(f"nobody watched: {watchers.events} events, {watchers.scrapes} scrapes, {kept} bytes of history")
    return {"pairs": pairs, "events": watchers.events, "scrapes": watchers.scrapes, "history_bytes": kept}


def interval(values):
    """The mean, and what it is more or less by with 95 % certainty."""
    spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("inf")
    return statistics.fmean(values), spread * STUDENT[min(len(values) - 1, len(STUDENT)) - 1]


def shares(pairs):
    """In percent of the machine, pair by pair: what the agent uses with and without, what it adds, what the worker adds
    for the same steps, and both."""
    cores = os.cpu_count() or 1
    agent = {name: [100 * pair[name]["agent_s"] / pair[name]["wall_s"] / cores for pair in pairs] for name in ("none", "watched")}
    added = [watched - none for watched, none in zip(agent["watched"], agent["none"])]

    def per_step(block):
        return block["worker_s"] / block["steps"]

    # At the speed of the one that is not watched.
    worker = [
        100 * (per_step(pair["watched"]) - per_step(pair["none"])) * pair["none"]["steps"] / pair["none"]["wall_s"] / cores
        for pair in pairs
    ]
    return {**agent, "agent": added, "worker": worker, "both": [one + other for one, other in zip(added, worker)]}
