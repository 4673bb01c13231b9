#!/usr/bin/env bash
# torchrun starts each rank in a session of its own, and so in a process group of its own. Who ends a command that is
# over its time with SIGKILL to its process group, as many programs that run commands do, ends torchrun alone: the ranks
# compute on, with their memory and their GPUs, and nobody waits for them. After SIGTERM torchrun ends them itself. The
# processes of torch.multiprocessing.spawn stay in the group of their parent, so that the same signal ends all of them.
#
# torch 2.11.0 from PyPI, on Linux. Seen in November 2026: 2 ranks that count. After SIGKILL to the group of torchrun both
# counted on; after SIGTERM neither did, nor after SIGKILL to the group of a script with torch.multiprocessing.spawn.
#
# Exit status: 0 where it behaves so, 1 where it does not. Takes some minutes; needs python3 with venv and 6 GB in TMPDIR.
# The ranks that are left are ended by their process ids; without that they would end by themselves after 2 minutes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv python
python/bin/pip install --quiet --disable-pip-version-check torch==2.11.0 numpy
cat >rank.py <<'PY'
import os
import sys
import time


def count(rank, folder):
    with open(f"{folder}/{rank}.pid", "w") as file:
        file.write(str(os.getpid()))
    for _ in range(1200):
        with open(f"{folder}/{rank}.count", "a") as file:
            file.write(".")
        time.sleep(0.1)


if __name__ == "__main__":
    if "RANK" in os.environ:
        count(int(os.environ["RANK"]), sys.argv[1])
    else:
        import torch
        torch.multiprocessing.spawn(count, args=(sys.argv[1],), nprocs=2)
PY
cat >show.py <<'PY'
import os
import signal
import subprocess
import sys
import time

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "rank.py"]


def counted(folder, rank):
    path = f"{folder}/{rank}.count"
    return os.path.getsize(path) if os.path.exists(path) else 0


def left(folder, command, number):
    """How many of the two ranks count on after the signal to the command's process group."""
    os.mkdir(folder)
    with open(f"{folder}/log", "w") as log:
        group = subprocess.Popen([*command, folder], start_new_session=True, stdout=log, stderr=log)
    end = time.monotonic() + 300
    while not all(counted(folder, rank) for rank in (0, 1)):
        if group.poll() is not None or time.monotonic() > end:
            sys.exit(f"the ranks did not start: {open(f'{folder}/log').read()}")
        time.sleep(0.1)
    os.killpg(group.pid, number)
    group.wait(timeout=120)
    time.sleep(5)
    before = [counted(folder, rank) for rank in (0, 1)]
    time.sleep(5)
    going = [rank for rank in (0, 1) if counted(folder, rank) > before[rank]]
    for rank in going:
        os.kill(int(open(f"{folder}/{rank}.pid").read()), signal.SIGKILL)
    return len(going)


seen = []
for name, command, number in (
        ("torchrun", TORCHRUN, signal.SIGKILL), ("torchrun", TORCHRUN, signal.SIGTERM),
        ("torch.multiprocessing.spawn", [sys.executable, "rank.py"], signal.SIGKILL)):
    seen.append(left(f"{name}-{number.name}", command, number))
    print(f"{name}, {number.name} to its process group: {seen[-1]} of 2 ranks go on", flush=True)
sys.exit(seen != [2, 0, 0])
PY
python/bin/python show.py 2>errors.txt || { cat errors.txt >&2; exit 1; }
