"""What the parts in Python share: rows, sessions of the exerciser, images with file systems on them.

Invariant: whatever is mounted, attached or started through here is undone when its `with` ends, also after an error.
Deliberately not here: what goes wrong (the parts)."""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

EXERCISER = os.environ.get("CKPTD_FAULTS", "target/faults/exerciser")
SCRATCH = pathlib.Path(os.environ.get("FAULTS_SCRATCH", "/dev/shm"))
MIB = 1 << 20
# Smallest images on which each file system can be made, and how.
IMAGES = {
    "ext4": (64 * MIB, ["mkfs.ext4", "-q", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"]),
    "xfs": (320 * MIB, ["mkfs.xfs", "-q", "-K"]),
    "btrfs": (128 * MIB, ["mkfs.btrfs", "-q", "-K"]),
}


class Missing(Exception):
    """A facility that this machine lacks; the text says which."""


class Row:
    """A line of the table."""

    def __init__(self, kind: str, seed: int):
        self.row = {"kind": kind, "points": 0, "violations": 0, "examples": [], "seed": seed}
        self.met = 0

    def point(self, what: str, broken: list[str]) -> None:
        self.row["points"] += 1
        if broken:
            self.row["violations"] += 1
            if len(self.row["examples"]) < 5:
                self.row["examples"].append(f"{what}: {broken[0]}")

    def meets(self, fault: bool) -> None:
        """Whether the session of a point met the fault that was laid for it."""
        self.met += fault

    def print(self, must_meet: bool = False) -> None:
        if must_meet and not self.met:
            self.point("all points", ["no session met a fault: nothing was tested"])
        print(json.dumps(self.row), flush=True)


def options(doc: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", choices=["full", "short"], default="full")
    parsed = parser.parse_args()
    parsed.short = parsed.scale == "short"
    return parsed


def not_run(kind: str, why: object) -> None:
    print(json.dumps({"kind": kind, "points": 0, "violations": 0, "not_run": str(why)}), flush=True)


def run(*command: object, check: bool = True) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip()


def need_root() -> None:
    if os.geteuid():
        raise Missing("needs root to mount file systems")


def need(command: str, package: str) -> None:
    """Makes sure that a program is there; as root it is installed where it can be."""
    if shutil.which(command):
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        for arguments in (["install"], ["update"], ["install"]):
            names = [package] if arguments == ["install"] else []
            subprocess.run(["apt-get", "-qq", "-y", *arguments, *names], stdout=sys.stderr, stderr=sys.stderr, check=False,
                           env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})
            if shutil.which(command):
                return
    raise Missing(f"{command} is missing (Debian package {package})")


@contextlib.contextmanager
def mounted(target: pathlib.Path, *arguments: object):
    target.mkdir(parents=True, exist_ok=True)
    try:
        run("mount", *arguments, target)
    except RuntimeError as error:
        raise Missing(f"cannot mount: {error}") from error
    try:
        yield target
    finally:
        unmount(target)


def is_mounted(target: pathlib.Path) -> bool:
    """Asked of the kernel: a file system that has shut down answers nothing itself."""
    return any(line.split()[1] == str(target) for line in pathlib.Path("/proc/mounts").read_text().splitlines())


def unmount(target: pathlib.Path) -> None:
    """A file system that has just been used may be busy for a moment."""
    for attempt in range(40):
        if not is_mounted(target) or not subprocess.run(["umount", target], capture_output=True, check=False).returncode:
            return
        time.sleep(0.05 * (1 + attempt // 10))
    run("umount", "-l", target)


def make_image(path: pathlib.Path, kind: str) -> None:
    size, command = IMAGES[kind]
    need(command[0], {"ext4": "e2fsprogs", "xfs": "xfsprogs", "btrfs": "btrfs-progs"}[kind])
    with open(path, "wb") as file:
        file.truncate(size)
    run(*command, path)


def session(store: pathlib.Path, seed: int, rounds: int, **popen: object) -> tuple[list[str], list[str]]:
    """A session of the exerciser to its end: its announcements, and what is wrong with how it ended."""
    done = subprocess.run([EXERCISER, "session", store, "--seed", str(seed), "--rounds", str(rounds)],
                          capture_output=True, text=True, check=False, **popen)
    lines = done.stdout.splitlines()
    wrong = [] if done.returncode == 0 else [f"the session ended with {done.returncode}: {done.stderr.strip()[-300:]}"]
    wrong += [f"an error without a path: {e}" for e in errors(lines) if str(store) not in e]
    return lines, wrong


def errors(lines: list[str]) -> list[str]:
    return [ack["error"] for ack in map(json.loads, lines) if ack["ack"] == "failed"]


def check(store: pathlib.Path, seed: int, lines: list[str], go_on: bool = True) -> list[str]:
    """What is broken of what was announced."""
    announced = SCRATCH / f"announced-{os.getpid()}"
    announced.write_text("".join(line + "\n" for line in lines))
    done = subprocess.run([EXERCISER, "check", store, announced, "--seed", str(seed), *(["--go-on"] if go_on else [])],
                          capture_output=True, text=True, check=False)
    announced.unlink()
    broken = done.stdout.splitlines()
    if done.returncode and not broken:
        broken = [f"the check ended with {done.returncode}: {done.stderr.strip()[-300:]}"]
    return broken


class InStep:
    """A session that waits after each announcement until it is told to go on."""

    def __init__(self, store: pathlib.Path, seed: int, rounds: int):
        self.process = subprocess.Popen([EXERCISER, "session", store, "--seed", str(seed), "--rounds", str(rounds), "--in-step"],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "InStep":
        return self

    def announcements(self):
        """Each line while the session waits behind it."""
        for line in self.process.stdout:
            yield line.strip()
            try:
                self.process.stdin.write("\n")
                self.process.stdin.flush()
            except BrokenPipeError:
                return

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
