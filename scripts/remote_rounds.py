#!/usr/bin/env python3
"""Two machines and a remote, again and again: the first one trains and is killed at a random moment, its disk is
deleted, and the second one is given nothing but the URL. It must go on from the newest marker that was there at the
kill, and end in the root of a training that nobody disturbed.

    scripts/remote_rounds.py PROGRAMS [ROUNDS [SEED]]

PROGRAMS is the folder of ckptd, ckptd-gpt2 and object-server. The machines are PID namespaces (root is needed): neither
sees the other's processes, so that the second one waits until the lease has run out. Remotes: a folder, SFTP (OpenSSH's
server of files behind an `ssh` of this script), S3's protocol (the tests' object store)."""

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

STEPS, EVERY, TTL_S = 160, 4, 5
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
steps = {STEPS}
batch_size = 2
sequence_length = 32
warmup_steps = 3
eval_every = 0
"""
SFTP_SERVERS = [Path("/usr/lib/openssh/sftp-server"), Path(".cache/openssh/usr/lib/openssh/sftp-server")]
PATIENCE_S = 120


class Failed(Exception):
    pass


class Rounds:
    def __init__(self, programs: Path, seed: int):
        self.programs, self.random = programs.resolve(), random.Random(seed)
        self.root = self.undisturbed()

    def ckptd(self, *arguments: str) -> list[str]:
        return [str(self.programs / "ckptd"), *arguments]

    def undisturbed(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            lay(Path(folder), "")
            subprocess.run(self.ckptd("run", "job.toml"), cwd=folder, check=True, capture_output=True)
            return self.newest(Path(folder) / "checkpoints/job")["root"]

    def newest(self, *target: object, environment: dict | None = None) -> dict:
        command = self.ckptd("list", "--json", *map(str, target))
        listed = subprocess.run(command, check=True, capture_output=True, env={**os.environ, **(environment or {})})
        return next(row for row in json.loads(listed.stdout) if not row.get("orphan"))

    def machine(self, folder: Path, environment: dict, *arguments: str) -> subprocess.Popen:
        alone = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]
        log = (folder / "log").open("w")
        return subprocess.Popen(
            [*alone, *self.ckptd("run", *arguments)],
            cwd=folder, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )

    def round(self, url: str, environment: dict, folder: Path) -> dict:
        here, there = folder / "here", folder / "there"
        here.mkdir()
        there.mkdir()
        lay(here, f'[remote]\nurl = "{url}"\nlease = "{TTL_S}s"\n')
        first = self.machine(here, environment, "job.toml")
        try:
            wait_for(first, here / "log", "replicated step")
            time.sleep(self.random.uniform(0, 2))
        finally:
            power_off(first)
        killed = time.time()
        log = (here / "log").read_text()
        marker = self.newest("--remote", url, environment=environment)
        shutil.rmtree(here)
        second = self.machine(there, environment, url)
        code = second.wait(PATIENCE_S)
        said = (there / "log").read_text()
        resumed = re.search(r"fetched step (\d+)", said)
        if code != 0 or not resumed or int(resumed[1]) != marker["step"]:
            raise Failed(f"exit {code}, the newest marker was of step {marker['step']}:\n{said}")
        told = [int(step) for step in re.findall(r"replicated step (\d+)", log)]
        if told and marker["step"] < max(told):
            raise Failed(f"step {max(told)} was said to be replicated, and the newest marker is of step {marker['step']}")
        part = url.rstrip("/").rsplit("/", 1)[1]
        root = self.newest(there / part / "store")["root"]
        if root != self.root:
            raise Failed(f"root {root}, undisturbed {self.root}:\n{said}")
        return {"step": marker["step"], "age": killed - seconds(marker["created_at"])}


def power_off(machine: subprocess.Popen) -> None:
    """Kills the first process of a machine: the kernel ends all others with it, before that one is gone."""
    children = Path(f"/proc/{machine.pid}/task/{machine.pid}/children")
    for child in children.read_text().split() if children.exists() else []:
        os.kill(int(child), signal.SIGKILL)
    machine.wait(PATIENCE_S)


def seconds(moment: str) -> float:
    whole, _, fraction = moment.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{fraction or 0}")


def lay(folder: Path, remote: str) -> None:
    shutil.copytree("crates/interop/src", folder / "texts", ignore=shutil.ignore_patterns("*/"))
    for source in (folder / "texts").rglob("*.rs"):
        source.rename(folder / "texts" / f"{source.stem}-{source.parent.name}.txt")
    (folder / "job.toml").write_text(JOB + remote)


def wait_for(process: subprocess.Popen, log: Path, text: str) -> None:
    until = time.time() + PATIENCE_S
    while text not in log.read_text():
        if process.poll() is not None or time.time() > until:
            raise Failed(f"{text!r} never came:\n{log.read_text()}")
        time.sleep(0.02)


def remotes(programs: Path, folder: Path):
    """Name, and what makes the URL and the variables of a round."""
    yield "file", lambda at: (f"file://{at}/job", {})
    server = next((server for server in SFTP_SERVERS if server.exists()), None)
    if server:
        ssh = folder / "ssh"
        ssh.write_text(f"#!/bin/sh\nexec {server.resolve()}\n")
        ssh.chmod(0o755)
        path = {"PATH": f"{folder}:{os.environ['PATH']}"}
        yield "sftp", lambda at: (f"sftp://me@host{at}/job", path)
    store = subprocess.Popen([programs / "object-server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    keys = {"AWS_ENDPOINT_URL": store.stdout.readline().strip(), "AWS_ACCESS_KEY_ID": "AKIATEST",
            "AWS_SECRET_ACCESS_KEY": "of no consequence"}
    yield "s3", lambda at: (f"s3://bucket/{at.name.replace('_', '-')}/job", keys)
    store.stdin.close()
    store.wait()


def main() -> int:
    os.chdir(Path(__file__).resolve().parent.parent)
    programs, rounds = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else random.randrange(1 << 32)
    print(f"seed {seed}, {rounds} rounds on each remote, lease {TTL_S} s", flush=True)
    failed = 0
    runs = Rounds(programs, seed)
    with tempfile.TemporaryDirectory() as tools:
        for name, place in remotes(programs, Path(tools)):
            results = []
            for number in range(rounds):
                with tempfile.TemporaryDirectory() as folder:
                    at = Path(folder)
                    (at / "job").mkdir()
                    url, environment = place(at)
                    try:
                        results.append(runs.round(url, environment, at))
                    except Failed as error:
                        failed += 1
                        print(f"{name}, round {number}: {error}", flush=True)
            if results:
                steps = sorted(result["step"] for result in results)
                ages = sorted(result["age"] for result in results)
                print(f"{name:5} {len(results)} of {rounds} rounds ended in the undisturbed root; newest marker at the "
                      f"kill: steps {steps[0]} to {steps[-1]} of {STEPS}, {ages[len(ages) // 2]:.1f} s old (median), "
                      f"{ages[-1]:.1f} s (oldest)", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
