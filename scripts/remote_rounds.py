#!/usr/bin/env python3
"""Two machines and a remote, again and again: the first one trains and is killed at a random moment, its disk is
deleted, and the second one is given nothing but the URL. It must wait for the lease to run out, go on from the newest
marker that was there at the kill, and end in the root of a training that nobody disturbed. No marker may be older than
the interval between two snapshots that were sent, and the time that one takes to its marker.

In the last round on each remote the first machine lives on, cut off (its cable is pulled; where the remote is no
network, it stands still): the second one takes over, the first one is told and ends, and one history remains.

    scripts/remote_rounds.py PROGRAMS [REMOTE ...]

PROGRAMS is the folder of ckptd, ckptd-gpt2 and object-server. Remotes: s3 (the tests' object store), az (azurite), file
(a folder), sftp (OpenSSH's server of files behind an `ssh` of scripts/remote_machines.py); without names, all of them.
CKPTD_ROUNDS (20) and CKPTD_SEED are taken from the environment. Root is needed."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from remote_machines import PATIENCE_S, Machine, Network, Store, stores

EVERY, TTL_S, TRIES = 4, 5, 5
JOB = f"""[job]
threads = 2
[model]
preset = "gpt2-mini"
dropout = 0.1
[data]
text = ["texts"]
[snapshot]
every_steps = {EVERY}
[train]
batch_size = 2
sequence_length = 32
warmup_steps = 3
eval_every = 0
[log]
level = "debug"
"""
REMOTES = ["s3", "az", "file", "sftp"]


class Failed(Exception):
    pass


class TooLate(Exception):
    """The training was over before it could be disturbed, which shows nothing: the round is begun anew."""


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Failed(what)


class Rounds:
    def __init__(self, programs: Path, network: Network, seed: int):
        self.programs, self.network, self.random = programs.resolve(), network, random.Random(seed)
        self.running: list[Machine] = []
        self.roots: dict[int, str] = {}

    def root(self, steps: int) -> str:
        """The root of a training that nobody disturbed."""
        if steps not in self.roots:
            with tempfile.TemporaryDirectory() as folder:
                lay(Path(folder), steps, "")
                subprocess.run(self.ckptd("run", "job.toml"), cwd=folder, check=True, capture_output=True)
                self.roots[steps] = self.rows(Path(folder) / "checkpoints/job")[0]["root"]
        return self.roots[steps]

    def ckptd(self, *arguments: str) -> list[str]:
        return [str(self.programs / "ckptd"), *arguments]

    def rows(self, *target: object, variables: dict | None = None) -> list[dict]:
        command = self.ckptd("list", "--json", *map(str, target))
        listed = subprocess.run(command, check=True, capture_output=True, env={**os.environ, **(variables or {})})
        return [row for row in json.loads(listed.stdout) if not row.get("orphan")]

    def first(self, store: Store, folder: Path) -> Machine:
        """The machine that has the job file."""
        here = folder / "here"
        here.mkdir()
        lay(here, store.steps, f'[remote]\nurl = "{store.url}"\n{store.section}lease = "{TTL_S}s"\n')
        machine = self.machine("a", here, "job.toml", store.beside_job_file())
        machine.wait_for("replicated step")
        return machine

    def second(self, store: Store, folder: Path) -> Machine:
        """The machine that has nothing but the URL."""
        there = folder / "there"
        there.mkdir()
        return self.machine("b", there, store.url, store.variables)

    def machine(self, name: str, folder: Path, job: str, variables: dict) -> Machine:
        command = self.ckptd("run", "--log-format", "json", job)
        self.running.append(Machine(self.network, name, folder, command, variables))
        return self.running[-1]

    def cut(self, machine: Machine, by_cable: bool, cut: bool) -> None:
        if by_cable:
            self.network.cable("a", "down" if cut else "up")
        else:
            machine.signal(signal.SIGSTOP if cut else signal.SIGCONT)

    def finish(self, second: Machine, store: Store, resumed_from: int | None) -> int:
        """The second machine ends the training in the right root, after the lease and from the right step."""
        code, said = second.process.wait(PATIENCE_S), second.said()
        require(code == 0, f"exit {code}:\n{said}")
        resumed = re.search(r"fetched step (\d+)", said)
        require(resumed is not None, f"nothing was fetched:\n{said}")
        if resumed_from is not None:
            require(int(resumed[1]) == resumed_from, f"the newest marker was of step {resumed_from}:\n{said}")
        waited = moment(second, "this process owns") or moment(second, "fetched step")
        waited -= moment(second, "waiting for it to be free") or waited
        require(waited > 0.9 * TTL_S, f"it waited {waited:.1f} s for a lease of {TTL_S} s:\n{said}")
        part = store.url.rstrip("/").rsplit("/", 1)[1]
        root = self.rows(second.log.parent / part / "store")[0]["root"]
        undisturbed = self.root(store.steps)
        require(root == undisturbed, f"root {root}, undisturbed {undisturbed}:\n{said}")
        return int(resumed[1])

    def killed(self, store: Store, folder: Path) -> dict:
        first = self.first(store, folder)
        time.sleep(self.random.uniform(0, 2))
        if first.process.poll() is not None:
            raise TooLate
        first.power_off()
        killed, events = time.time(), first.events()
        marker = self.rows("--remote", store.url, variables=store.variables)[0]
        shutil.rmtree(folder / "here")
        if marker["step"] >= store.steps:
            raise TooLate
        taken, there = taken_and_there(events)
        require(marker["step"] >= max(there), f"step {max(there)} was said to be there, and the newest is {marker}")
        second = self.second(store, folder)
        self.finish(second, store, marker["step"])
        both = [(taken, there), taken_and_there(second.events())]
        return {
            "step": marker["step"],
            "age": killed - taken[marker["step"]],
            "intervals": [interval for pair in both for interval in intervals(*pair)],
            "ways": [there[step] - taken[step] for taken, there in both for step in there if step in taken],
        }

    def cut_off(self, store: Store, folder: Path) -> str:
        pulled = store.by_network and not self.network.why_not
        first = self.first(store, folder)
        self.cut(first, pulled, True)
        if "is verified here and at" in first.said():
            raise TooLate
        second = self.second(store, folder)
        try:
            second.wait_for("resuming from step")
        finally:
            self.cut(first, pulled, False)
        code, said = first.process.wait(PATIENCE_S), first.said()
        require(code == 1 and "of machine-b" in said, f"the first machine was not told: exit {code}\n{said}")
        step = self.finish(second, store, None)
        rows = self.rows("--remote", store.url, variables=store.variables)
        epochs = {row["step"]: row["epoch"] for row in rows}
        require(len(epochs) == len(rows), f"two histories: {rows}")
        require(all(epoch == (1 if at <= step else 2) for at, epoch in epochs.items()), f"not one epoch: {epochs}")
        return f"{'cable' if pulled else 'still'}: told, one history"


def times(events: list[dict], pattern: str) -> dict[int, float]:
    """When each step was first said to be what `pattern` says."""
    found: dict[int, float] = {}
    for event in events:
        match = re.match(pattern, event.get("message", ""))
        if match:
            found.setdefault(int(match[1]), seconds(event["timestamp"]))
    return found


def taken_and_there(events: list[dict]) -> tuple[dict[int, float], dict[int, float]]:
    """When the snapshot of each step was taken, and when its marker was there."""
    return times(events, r"snapshot of step (\d+)"), times(events, r"replicated step (\d+)")


def intervals(taken: dict[int, float], there: dict[int, float]) -> list[float]:
    """From each snapshot that was sent to the one that went next: the newest when the marker was there, or the one
    after it."""
    found = []
    for step in (step for step in there if step in taken):
        later = [other for other in taken if other > step]
        newest = [other for other in later if taken[other] <= there[step]]
        if later:
            found.append(taken[max(newest) if newest else min(later)] - taken[step])
    return found


def moment(machine: Machine, text: str) -> float:
    said = (event for event in machine.events() if text in event.get("message", ""))
    return next((seconds(event["timestamp"]) for event in said), 0.0)


def seconds(moment: str) -> float:
    whole, _, fraction = moment.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{fraction or 0}")


def lay(folder: Path, steps: int, remote: str) -> None:
    shutil.copytree("crates/interop/src", folder / "texts", ignore=shutil.ignore_patterns("*/"))
    for source in (folder / "texts").rglob("*.rs"):
        source.rename(folder / "texts" / f"{source.stem}-{source.parent.name}.txt")
    (folder / "job.toml").write_text(JOB.replace("[train]", f"[train]\nsteps = {steps}") + remote)


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def row(name: str, results: list[dict], rounds: int, cut: str) -> tuple[list[str], bool]:
    """A line of the table, and whether every marker was young enough."""
    if not results:
        return [name, f"0 of {rounds}", *["-"] * 5, cut], rounds == 0
    intervals = [interval for result in results for interval in result["intervals"]]
    ways = [way for result in results for way in result["ways"]]
    steps, ages = [result["step"] for result in results], [result["age"] for result in results]
    bound = max(intervals) + max(ways)
    cells = [
        f"{min(steps)} to {max(steps)}", f"{median(intervals):.2f}, {max(intervals):.2f}",
        f"{median(ways):.2f}, {max(ways):.2f}", f"{median(ages):.2f}, {max(ages):.2f}", f"{bound:.2f}",
    ]
    return [name, f"{len(results)} of {rounds}", *cells, cut], max(ages) <= bound


def table(rows: list[list[str]]) -> str:
    head = ["remote", "rounds", "steps at the kill", "interval, s", "to a marker, s", "newest marker, s", "bound, s",
            "cut off"]
    widths = [max(len(line[column]) for line in [head, *rows]) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)) for line in [head, *rows])


def attempt(what: str, runs: Rounds, act, place) -> object:
    for _ in range(TRIES):
        try:
            return once(what, runs, act, place)
        except TooLate:
            print(f"{what}: the training was over too early, begun anew", flush=True)
    print(f"{what}: over too early {TRIES} times", flush=True)
    return None


def once(what: str, runs: Rounds, act, place) -> object:
    with tempfile.TemporaryDirectory(prefix="round-") as folder:
        at = Path(folder)
        (at / "job").mkdir()
        try:
            return act(place(at), at)
        except (Failed, AssertionError, subprocess.SubprocessError) as error:
            print(f"{what}: {error}", flush=True)
            return None
        finally:
            while runs.running:
                runs.running.pop().power_off()


def main() -> int:
    # Servers, machines and network are taken down then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.chdir(Path(__file__).resolve().parent.parent)
    programs, wanted = Path(sys.argv[1]), sys.argv[2:] or REMOTES
    rounds = int(os.environ.get("CKPTD_ROUNDS", "20"))
    seed = int(os.environ.get("CKPTD_SEED") or random.randrange(1 << 32))
    network = Network()
    apart = f"none ({network.why_not})" if network.why_not else "network namespaces, and a bridge"
    print(f"seed {seed}, {rounds} rounds on each remote, lease {TTL_S} s; PID, mount and host-name namespaces, boot and "
          f"machine ids of their own; network: {apart}", flush=True)
    lines, failed = [], 0
    try:
        runs = Rounds(programs, network, seed)
        with tempfile.TemporaryDirectory() as tools:
            for name, place in stores(programs, Path(tools), network, wanted):
                if place is None:
                    lines.append([name, "its server is not installed (scripts/setup.sh full)", *[""] * 6])
                    continue
                tried = [attempt(f"{name}, round {number}", runs, runs.killed, place) for number in range(rounds)]
                results = [result for result in tried if result]
                cut = attempt(f"{name}, cut off", runs, runs.cut_off, place)
                line, young = row(name, results, rounds, cut or "failed")
                failed += rounds - len(results) + (cut is None) + (not young)
                lines.append(line)
                print(" | ".join(line), flush=True)
    finally:
        network.close()
    print("\ninterval: between two snapshots that are sent; intervals, ways to a marker and ages: median, longest;\n"
          "bound on the age of the newest marker: the longest interval and the longest way\n")
    print(table(lines), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
