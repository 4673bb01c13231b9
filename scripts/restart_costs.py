#!/usr/bin/env python3
"""From a worker's death to the begin of its successor's first step, and what that time goes to.

    scripts/restart_costs.py [FOLDER OF ckptd AND ckptd-gpt2] [--preset NAME] [--kills N]
                             [--every STEPS] [--cold]

One job; its worker is killed N times, each time when a snapshot is verified and a worker waits in reserve; `--cold` has
none wait. One row: the median of the whole and of its parts: until the daemon has noticed, chosen a snapshot, until the
worker has said that it is ready to train, and until its first step begins.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 300
JOB = """\
[job]
store = "store"
[model]
preset = "{preset}"
[data]
tokens = "tokens.bin"
[train]
steps = 1000000
batch_size = 1
sequence_length = 128
eval_every = 0
[snapshot]
every_steps = {every}
[worker]
max_restarts = 1000
spare = {spare}
[log]
level = "debug"
"""
# How long a worker in reserve may take until it waits.
READY = 3.0
PARTS = ('noticed', 'chosen', 'ready', 'first step')


class Session:
    """One `ckptd run`, whose log is read as it comes."""

    def __init__(self, folder, programs):
        command = [programs / 'ckptd', 'run', '--log-format', 'json', 'job.toml']
        self.process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def line(self, pattern):
        """The next line that has this in its message: the match, and when it was written, in seconds."""
        until = time.monotonic() + PATIENCE
        for text in self.process.stderr:
            if not text.startswith('{'):
                continue
            line = json.loads(text)
            if found := re.search(pattern, line['message']):
                return found, datetime.datetime.fromisoformat(line['timestamp']).timestamp()
            if time.monotonic() > until:
                break
        raise SystemExit(f'no line has {pattern!r}')

    def worker(self):
        pid = self.process.pid
        return int(Path(f'/proc/{pid}/task/{pid}/children').read_text().split()[0])


def restart(session):
    """Kills the worker; seconds of each part."""
    session.line(r'verified step')
    time.sleep(READY)
    os.kill(session.worker(), signal.SIGKILL)
    began = time.time()
    moments = [session.line(pattern)[1] for pattern in (r'restarting it', r'^resuming from', r'^training \d+ parameters')]
    done, at = session.line(r'^step \d+ done: .* ([\d.]+) ms$')
    moments.append(at - float(done[1]) / 1e3)
    return [later - earlier for earlier, later in zip([began, *moments], moments)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('programs', nargs='?', type=Path, default=ROOT / 'target/release')
    parser.add_argument('--preset', default='gpt2-mini')
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--every', type=int, default=10, help='steps between snapshots')
    parser.add_argument('--cold', action='store_true')
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix='ckptd-restarts.', dir=Path.cwd()))
    numbers = (number * number // 7 % 4001 for number in range(1, 200_000))
    (folder / 'tokens.bin').write_bytes(b''.join(number.to_bytes(2, 'little') for number in numbers))
    spare = json.dumps(not arguments.cold)
    (folder / 'job.toml').write_text(JOB.format(preset=arguments.preset, every=arguments.every, spare=spare))
    session = Session(folder, arguments.programs.resolve())
    try:
        rows = [restart(session) for _ in range(arguments.kills)]
    finally:
        session.process.kill()
        session.process.wait()
        time.sleep(2)
        shutil.rmtree(folder, ignore_errors=True)
    wholes = [sum(row) for row in rows]
    parts = ', '.join(f'{name} {statistics.median(part):.3f}' for name, part in zip(PARTS, zip(*rows)))
    waits = 'none in reserve' if arguments.cold else 'one in reserve'
    print(
        f'{arguments.preset}, {waits}, {len(rows)} kills: median {statistics.median(wholes):.3f} s '
        f'({min(wholes):.3f} to {max(wholes):.3f}); {parts}'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
