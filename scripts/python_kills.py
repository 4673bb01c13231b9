#!/usr/bin/env python3
"""The loops of examples/python, killed at random moments: each must end in the root of the run that nobody disturbed.

    scripts/python_kills.py [FOLDER OF ckptd AND libckptd_native.so] [--kills N] [--seed N] [--only NAME[,NAME...]]
                            [--scripts FOLDER]

`--scripts` takes the scripts of another folder: seeded, and always on as many threads. Each script's own docstring says how
it is started. A kill is a SIGKILL to the script, the daemon or both, where a launcher has started the script also to one
rank, another rank or the launcher alone; at a random moment of a session, its start included. A training that is over
before it was killed often enough is begun again in a new store. One line per script: kills by what was killed, sessions,
the step and root that it ended in; exit 1 if a root differs.
"""

import argparse
import collections
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / 'examples' / 'python'
PYTHON = ROOT / '.cache' / 'python' / 'bin'
# What a session may take before it counts as one that hangs.
PATIENCE = 300
CONFIG = '[snapshot]\nevery = "200ms"\n[worker]\nmax_restarts = 100\n'


class Miss(Exception):
    """A promise that was not kept."""


class Session:
    """One `ckptd run`, and its log as it comes."""

    def __init__(self, training):
        self.steps, self.lines = 0, []
        command = [training.ckptd, 'run', '--config', 'job.toml', '--log-every', '1', '--', *training.command]
        self.process = subprocess.Popen(
            command, cwd=training.folder, env=training.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors='replace', start_new_session=True,
        )
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stderr:
            self.lines.append(line)
            self.steps += ', learning rate ' in line

    def await_step(self, count):
        """Waits for so many steps of this session; false if it ends before."""
        until = time.monotonic() + PATIENCE
        while self.steps < count:
            if self.process.poll() is not None:
                return False
            if time.monotonic() > until:
                raise Miss(f'no step came for {PATIENCE} s: {self.tail()}')
            time.sleep(0.002)
        return True

    def wait(self):
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Miss(f'it did not end within {PATIENCE} s: {self.tail()}') from None
        self.reader.join(5)
        return code

    def tail(self):
        return ''.join(self.lines[-15:])


class Training:
    """A job of an example in a folder of its own."""

    def __init__(self, place, example):
        words = re.search(r'ckptd run -- (.*)', example.read_text()).group(1).split()
        programs = {'python': str(PYTHON / 'python'), 'torchrun': str(PYTHON / 'torchrun')}
        self.command = [programs.get(word, str(example) if word == example.name else word) for word in words]
        self.ckptd = str(place.programs / 'ckptd')
        self.environment = {**os.environ, 'PYTHONPATH': str(place.package), 'HF_HUB_OFFLINE': '1'}
        self.own = tempfile.TemporaryDirectory(prefix='ckptd-kills-')
        self.folder = Path(self.own.name)
        (self.folder / 'job.toml').write_text(CONFIG)

    def newest(self):
        """Step and root of the newest snapshot, which must be verified."""
        listed = subprocess.run(
            [self.ckptd, 'list', '--json', 'checkpoints/job'], cwd=self.folder, capture_output=True, text=True, check=True
        )
        newest = json.loads(listed.stdout)[0]
        if newest['state'] != 'verified':
            raise Miss(f'the newest snapshot is {newest["state"]}')
        return newest['step'], newest['root']


class Place:
    """Programs, and the package as it is now."""

    def __init__(self, programs):
        self.programs = programs.resolve()
        self.own = tempfile.TemporaryDirectory(prefix='ckptd-package-')
        self.package = Path(self.own.name)
        (self.package / 'ckptd').mkdir()
        for source in (ROOT / 'crates' / 'python' / 'python' / 'ckptd').glob('*.py'):
            shutil.copy(source, self.package / 'ckptd')
        shutil.copy(self.programs / 'libckptd_native.so', self.package / 'ckptd' / '_native.abi3.so')


def children(pid):
    try:
        tasks = list(Path(f'/proc/{pid}/task').iterdir())
        return [int(word) for task in tasks for word in (task / 'children').read_text().split()]
    except OSError:
        return []


def ranks_below(pid):
    """The ranks that a launcher has started, by number."""
    found = {}
    for child in children(pid):
        try:
            variables = Path(f'/proc/{child}/environ').read_bytes().split(b'\0')
        except OSError:
            continue
        rank = next((int(word[5:]) for word in variables if word.startswith(b'RANK=')), None)
        if rank is not None:
            found[rank] = child
    return found


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def strike(session, rng):
    """Kills something; returns its name, and whether the session is over by that."""
    daemon = session.process.pid
    script = next(iter(children(daemon)), None)
    ranks = ranks_below(script) if script else {}
    targets = {'daemon': [daemon]}
    if ranks:
        launcher = {'launcher': [script], 'all': [daemon, script, *ranks.values()]}
        targets |= {f'rank {rank}': [pid] for rank, pid in sorted(ranks.items())} | launcher
    elif script:
        targets |= {'script': [script], 'both': [daemon, script]}
    name = rng.choice(sorted(targets))
    for pid in targets[name]:
        kill(pid)
    return name, daemon in targets[name]


def await_moment(session, rng, start_s):
    """A random moment: of its start, in one of five; else after some steps. False if the session ends before."""
    if rng.random() < 0.2:
        time.sleep(rng.random() * start_s)
        return session.process.poll() is None
    if not session.await_step(session.steps + rng.randint(1, 40)):
        return False
    time.sleep(rng.random() * 0.06)
    return session.process.poll() is None


def killed(training, most, rng, start_s, tally):
    """Kills a training at most so often, and lets it end."""
    session, made = Session(training), 0
    tally['sessions'] += 1
    while made < most:
        if not await_moment(session, rng, start_s):
            break
        name, is_over = strike(session, rng)
        tally[name] += 1
        made += 1
        if is_over:
            session.process.wait()
            session = Session(training)
            tally['sessions'] += 1
    code = session.wait()
    if code != 0:
        raise Miss(f'it ended with exit code {code}: {session.tail()}')
    return made


def check(place, example, kills, rng):
    """Returns what the table says of an example, and whether its roots agree."""
    began = time.monotonic()
    undisturbed = Training(place, example)
    session = Session(undisturbed)
    session.await_step(1)
    start_s = time.monotonic() - began
    if session.wait() != 0:
        raise Miss(f'undisturbed: {session.tail()}')
    step, root = undisturbed.newest()
    tally, left, jobs = collections.Counter(), kills, 0
    while left > 0:
        training = Training(place, example)
        left -= killed(training, left, rng, start_s, tally)
        jobs += 1
        if training.newest() != (step, root):
            raise Miss(f'it ended in {training.newest()}, undisturbed in {(step, root)}')
        if jobs > 5 * kills:
            raise Miss('it is over before it can be killed')
    sessions = tally.pop('sessions')
    by_name = ', '.join(f'{count} {name}' for name, count in sorted(tally.items()))
    minutes = (time.monotonic() - began) / 60
    return [example.name, step, kills, by_name, sessions, jobs, root[:16], 'yes', f'{minutes:.1f}']


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('programs', nargs='?', type=Path, default=ROOT / 'target' / 'release')
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--only', default='', help='names of scripts, without .py')
    parser.add_argument('--scripts', type=Path, default=EXAMPLES)
    options = parser.parse_args()
    only = [name for name in options.only.split(',') if name]
    examples = [path for path in sorted(options.scripts.resolve().glob('*.py')) if not only or path.stem in only]
    place, is_whole = Place(options.programs), True
    heads = ['script', 'steps', 'kills', 'of what', 'sessions', 'trainings', 'root', 'equal', 'minutes']
    print('| ' + ' | '.join(heads) + ' |\n|' + '---|' * len(heads), flush=True)
    for example in examples:
        try:
            row = check(place, example, options.kills, random.Random(f'{options.seed} {example.name}'))
        except Miss as miss:
            row, is_whole = [example.name, *['-'] * 6, 'NO', '-'], False
            print(f'{example.name}: {miss}', file=sys.stderr)
        print('| ' + ' | '.join(map(str, row)) + ' |', flush=True)
    return 0 if is_whole else 1


if __name__ == '__main__':
    sys.exit(main())
