#!/usr/bin/env python3
"""What a sharded optimizer saves and costs, beside a whole one in the same run: memory, seconds per step, and the time
until the newest state is durable after SIGTERM.

    scripts/ranks_costs.py [FOLDER OF ckptd AND ckptd-gpt2] [--stops N] [--ranks N] [--preset NAME] [--only TEXT]

Memory: a few steps of the preset on two ranks with snapshots, without and with `[ranks] shard_optimizer`; the peak of
either rank. SIGTERM: one session of gpt2-mini per stop, in turns without and with, each in a job of its own that goes
on where it was stopped. One row per figure; exit 1 if a step that was told is not in the store, if p99 is not below a
second, or if the peak is not lower by nine tenths of what a rank no longer holds.
"""

import argparse
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
from pathlib import Path

import slurm_check
from slurm_check import Miss

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 600
# Seconds of training within which the stop comes.
WITHIN = 2.0
LIMIT = 1.0

JOB = """\
[job]
store = "store"
threads = 1
[model]
preset = "{preset}"
dropout = 0.1
[data]
tokens = "tokens.bin"
[train]
steps = {steps}
batch_size = 1
sequence_length = 64
grad_accumulation = {micro_batches}
grad_clip = 0.5
[snapshot]
{snapshots}
[ranks]
count = {ranks}
shard_optimizer = {sharded}
[log]
level = "debug"
"""


class MeasuredJob:
    """A training with or without a sharded optimizer, in a folder of its own."""

    def __init__(self, folder, programs, sharded, **facts):
        self.folder, self.programs, self.sharded, self.ranks = folder, programs, sharded, facts['ranks']
        folder.mkdir()
        numbers = (number * number // 7 % 1013 for number in range(1, 60000))
        (folder / 'tokens.bin').write_bytes(b''.join(number.to_bytes(2, 'little') for number in numbers))
        (folder / 'job.toml').write_text(JOB.format(sharded=json.dumps(sharded), **facts))
        self.seconds, self.peaks = [], {}

    def start(self):
        command = [str(self.programs / 'ckptd'), 'run', '--log-format', 'json', 'job.toml']
        with (self.folder / 'log').open('wb') as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder)

    def log(self):
        lines = (self.folder / 'log').read_text(errors='replace').splitlines()
        return [json.loads(line) for line in lines if line.startswith('{') and line.endswith('}')]

    def steps(self):
        return [line for line in self.log() if ' done: loss' in line['message']]

    def complete(self):
        """Trains to the end. Keeps the peak of each process that computes."""
        agent = self.start()
        try:
            until = time.monotonic() + PATIENCE
            while agent.poll() is None:
                if time.monotonic() > until:
                    raise Miss(f'it does not end: {self.log()[-3:]}')
                for zero in children(agent.pid):
                    for pid in (zero, *children(zero)):
                        self.peaks[pid] = max(self.peaks.get(pid, 0), peak(pid))
                time.sleep(0.05)
        finally:
            end(agent)
        if agent.returncode != 0:
            raise Miss(f'exit {agent.returncode}: {self.log()[-3:]}')

    def stop(self):
        """One session: its first step, a random time, SIGTERM. Keeps the time until the last snapshot was durable."""
        agent = self.start()
        try:
            until = time.monotonic() + PATIENCE
            while not self.steps():
                if agent.poll() is not None or time.monotonic() > until:
                    raise Miss(f'it did not train: {self.log()[-3:]}')
                time.sleep(0.02)
            time.sleep(random.random() * WITHIN)
            agent.send_signal(signal.SIGTERM)
            if agent.wait(PATIENCE) != 75:
                raise Miss(f'exit {agent.returncode}: {self.log()[-3:]}')
        finally:
            end(agent)
        durable = [line for line in self.log() if 'is durable' in line['message']]
        # Without a line the newest state was durable by then.
        self.seconds.append(durable[-1]['seconds'] if durable else 0.0)
        told = max(int(re.search(r'step (\d+) done', line['message'])[1]) for line in self.steps())
        saved = self.newest()['step']
        if saved < told:
            raise Miss(f'step {told} was done, and step {saved} is saved')

    def newest(self):
        listed = subprocess.run(
            [self.programs / 'ckptd', 'list', '--json', 'store'],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(listed.stdout)[0]


def children(pid):
    try:
        return [int(child) for child in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]
    except OSError:
        return []


def peak(pid):
    """The most memory that a process has held, in bytes; 0 for one that is gone."""
    try:
        lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    except OSError:
        return 0
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith('VmHWM')), 0)


def end(agent):
    if agent.poll() is None:
        agent.kill()
        agent.wait()


def at(ordered, share):
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def memory(folder, programs, preset):
    """The peak of each rank, and the seconds of a step. Returns whether sharding saves what it should."""
    snapshots = 'every_steps = 2\nmemory = "unlimited"'
    facts = {'preset': preset, 'steps': 8, 'micro_batches': 4, 'ranks': 2, 'snapshots': snapshots}
    jobs = [MeasuredJob(folder / f'memory-{sharded}', programs, sharded, **facts) for sharded in (False, True)]
    peaks, steps, roots = [], [], []
    for job in jobs:
        job.complete()
        peaks.append(sorted(job.peaks.values())[-job.ranks :])
        times = sorted(float(re.search(r'([\d.]+) ms', line['message'])[1]) for line in job.steps())
        steps.append(at(times, 0.5) / 1e3)
        roots.append(job.newest()['root'])
    # Parameters and two moments of equal size; without a bound a rank holds each moment twice.
    moments = 2 * jobs[0].newest()['raw_bytes'] * 2 // 3
    saved = moments / 2
    lower = max(peaks[0]) - max(peaks[1])
    held = lower >= 0.9 * saved and roots[0] == roots[1]
    mib = lambda values: ', '.join(f'{value / 2**20:.0f}' for value in values)
    said = (
        f'peak of either {mib(peaks[0])} MiB, sharded {mib(peaks[1])}: lower by {lower / saved:.2f} of the '
        f'{mib([saved])} MiB that a rank no longer holds; {"one root" if roots[0] == roots[1] else roots}'
    )
    slurm_check.row('ok' if held else 'MISS', f'{preset}, 2 ranks: memory', said)
    said = f'{steps[0]:.2f} s per step, sharded {steps[1]:.2f} s; 4 micro-batches of 64 tokens'
    slurm_check.row('ok', f'{preset}, 2 ranks: time', said)
    return held


def stops(folder, programs, ranks, count):
    """SIGTERM at random moments. Returns whether p99 is below the limit for both."""
    facts = {'preset': 'gpt2-mini', 'steps': 1_000_000, 'micro_batches': 6, 'ranks': ranks}
    facts['snapshots'] = 'every = "700ms"'
    jobs = [MeasuredJob(folder / f'stops-{sharded}', programs, sharded, **facts) for sharded in (False, True)]
    for _ in range(count):
        for job in jobs:
            job.stop()
    held = True
    for job in jobs:
        ordered = sorted(job.seconds)
        names = [('p50', 0.5), ('p90', 0.9), ('p99', 0.99), ('worst', 1.0)]
        figures = ', '.join(f'{name} {at(ordered, share) * 1e3:.0f} ms' for name, share in names)
        what = f'{count} SIGTERMs, {ranks} ranks, {"sharded" if job.sharded else "whole"}'
        is_fast = at(ordered, 0.99) < LIMIT
        slurm_check.row('ok' if is_fast else 'MISS', what, f'to durable: {figures}')
        held &= is_fast
    return held


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('programs', nargs='?', type=Path, default=ROOT / 'target/release')
    parser.add_argument('--stops', type=int, default=200, help='of each of the two jobs')
    parser.add_argument('--ranks', type=int, default=3, help='that are stopped')
    parser.add_argument('--preset', default='gpt2', help='of which the memory is measured')
    parser.add_argument('--only', default='', help='"memory" or "stops"')
    parser.add_argument('--seed', type=int, default=1)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    programs = arguments.programs.resolve()
    os.environ['PATH'] = f'{programs}:{os.environ["PATH"]}'
    folder, held = Path(tempfile.mkdtemp(prefix='ckptd-costs.')), True
    parts = {
        'memory': lambda: memory(folder, programs, arguments.preset),
        'stops': lambda: stops(folder, programs, arguments.ranks, arguments.stops),
    }
    try:
        for name, measure in parts.items():
            if arguments.only not in name:
                continue
            try:
                held &= measure()
            except (Miss, OSError, subprocess.SubprocessError) as miss:
                slurm_check.row('MISS', name, miss)
                held = False
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return int(not held)


if __name__ == '__main__':
    sys.exit(main())
