#!/usr/bin/env python3
"""Many ranks, one result, under real launchers: one small training in many ways, and the root that each ends in.

    scripts/ranks_check.py [FOLDER OF ckptd AND ckptd-gpt2] [--mpi FOLDER] [--short] [--only TEXT] [--seed N]
                           [--sessions N] [--keep]

Plain processes, torchrun, Open MPI's mpirun and a Slurm of one node that it brings up itself, the last two also over MPI
with the programs of `--mpi`, which were built with it; 1 to 6 ranks; 6 and 8 micro-batches per step; AdamW and SGD;
bf16; GPT-2 with 124 M parameters; two hosts (network namespaces) with a bad wire, or one that is cut; ranks that see
nothing of the job's folder; with a sharded optimizer and without. Then, per launcher, chains of sessions on random
numbers of ranks in which a rank, rank 0, the launcher or the daemon is killed, half of them sharded. One line per check;
what this machine lacks is named; exit 1 if a root differs, or a check fails. As root, it installs Debian's Open MPI
where that is missing.
"""

import argparse
import collections
import contextlib
import fcntl
import json
import os
import random
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import slurm_check
from slurm_check import Miss, Slurm

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 240
COUNTS = (1, 2, 3, 4, 6)
# In processes of one check alone.
MARK = 'CKPTD_RANKS_CHECK'
RANK_VARIABLES = ('RANK', 'OMPI_COMM_WORLD_RANK', 'CKPTD_RANK', 'SLURM_PROCID')

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
grad_accumulation = {accumulation}
optimizer = "{optimizer}"
precision = "{precision}"
learning_rate = {rate}
warmup_steps = 2
grad_clip = 0.5
eval_every = 4
eval_batches = 5
[snapshot]
every_steps = 3
[session]
grace = "60s"
[worker]
max_restarts = 100
hang_timeout = "2m"
[ranks]
launcher = {launcher}
count = {count}
shard_optimizer = {sharded}
backend = "{backend}"
"""
# (launcher, backend)
WAYS = (('none', 'gloo'), ('torchrun', 'gloo'), ('mpirun', 'gloo'), ('srun', 'gloo'), ('mpirun', 'mpi'), ('srun', 'mpi'))


class Training:
    """A job in a folder of its own, in as many sessions as it takes."""

    def __init__(self, place, name, **facts):
        self.folder = place.folder / name
        self.folder.mkdir()
        self.place, self.name = place, name
        usual = {'preset': 'gpt2-mini', 'precision': 'float32', 'backend': 'gloo', 'steps': 8, 'optimizer': 'adamw'}
        self.facts = {**usual, 'accumulation': 6, 'sharded': False, **facts}
        self.facts['rate'] = {'adamw': 1e-3, 'sgd': 0.05}[self.facts['optimizer']]
        numbers = (number * number // 7 % 1013 for number in range(1, 60000))
        (self.folder / 'tokens.bin').write_bytes(b''.join(number.to_bytes(2, 'little') for number in numbers))
        self.log_at = 0

    def start(self, launcher, count, within=(), **variables):
        facts = {**self.facts, 'sharded': json.dumps(self.facts['sharded'])}
        text = JOB.format(launcher=json.dumps(launcher), count=count, **facts)
        (self.folder / 'job.toml').write_text(text)
        environment = {**os.environ, MARK: f'{self.name}.{os.getpid()}', **variables}
        programs = self.place.mpi if self.facts['backend'] == 'mpi' else self.place.programs
        command = [*within, str(programs / 'ckptd'), 'run', '--verbose', 'job.toml']
        if launcher == 'srun':
            # An allocation, within which srun starts the ranks.
            command = ['salloc', f'--ntasks={max(COUNTS)}', '--quiet', *command]
        log = (self.folder / 'log').open('ab')
        self.log_at = log.tell()
        self.agent = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, env=environment
        )
        log.close()
        self.launcher = launcher

    def log(self):
        """What this session has said so far."""
        with (self.folder / 'log').open('rb') as log:
            log.seek(self.log_at)
            return log.read().decode(errors='replace')

    def says(self, pattern, count=1):
        until = time.monotonic() + PATIENCE
        while len(re.findall(pattern, self.log())) < count:
            if self.agent.poll() is not None:
                raise Miss(f'it ended ({self.agent.returncode}) before {pattern!r}: {self.log().splitlines()[-3:]}')
            if time.monotonic() > until:
                raise Miss(f'waited {PATIENCE} s in vain for {pattern!r}: {self.log().splitlines()[-3:]}')
            time.sleep(0.05)

    def steps_done(self):
        return len(re.findall(r'step \d+ done', self.log()))

    def ended(self, *codes):
        try:
            code = self.agent.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Miss(f'it does not end: {self.log().splitlines()[-3:]}')
        if code not in codes:
            raise Miss(f'exit {code}: {self.log().splitlines()[-3:]}')
        return code

    def root(self):
        ckptd = self.place.programs / 'ckptd'
        listed = subprocess.run(
            [ckptd, 'list', '--json', 'store'], cwd=self.folder, capture_output=True, text=True, check=True
        )
        newest = json.loads(listed.stdout)[0]
        if newest['step'] != self.facts['steps'] or newest['state'] != 'verified':
            raise Miss(f'the newest snapshot is {newest["step"]}, {newest["state"]}')
        return newest['root']

    def complete(self, launcher, count):
        self.start(launcher, count)
        self.ended(0)
        return self.root()

    def processes(self, program):
        """{rank or None: process id} of the running processes of this training that are `program`."""
        found = {}
        for entry in Path('/proc').iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / 'cmdline').read_bytes().split(b'\0')
                environment = (entry / 'environ').read_bytes().split(b'\0')
            except OSError:
                continue
            names = [os.path.basename(word.decode(errors='replace')) for word in words[:2]]
            if program not in names or f'{MARK}={self.name}.{os.getpid()}'.encode() not in environment:
                continue
            variables = dict(item.decode(errors='replace').split('=', 1) for item in environment if b'=' in item)
            rank = next((int(variables[name]) for name in RANK_VARIABLES if name in variables), None)
            found.setdefault(rank if program == 'ckptd-gpt2' else None, int(entry.name))
        return found

    def kill(self, target):
        """SIGKILL to a rank, rank 0, the launcher, or the daemon. Returns what was killed."""
        ranks = self.processes('ckptd-gpt2')
        others = [rank for rank in ranks if rank]
        if target == 'rank' and others:
            rank = random.choice(others)
            os.kill(ranks[rank], signal.SIGKILL)
            return f'rank {rank}'
        if target == 'launcher' and self.launcher != 'none':
            os.kill(self.processes(self.launcher)[None], signal.SIGKILL)
            return self.launcher
        if target == 'daemon':
            os.kill(self.processes('ckptd')[None], signal.SIGKILL)
            return 'daemon'
        # With one rank, or plain processes, rank 0 is what is left.
        os.kill(ranks[0] if 0 in ranks else ranks[None], signal.SIGKILL)
        return 'rank 0'

    def end(self):
        """Whatever is left of it."""
        for program in ('ckptd', 'ckptd-gpt2'):
            for pid in self.processes(program).values():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass


# Starts each rank on one of two hosts, which are network namespaces.
TWO_HOSTS = """
import os, subprocess, sys
count, spaces, command = int(sys.argv[1]), sys.argv[2:4], sys.argv[4:]
def start(rank):
    own = dict(os.environ, RANK=str(rank), WORLD_SIZE=str(count))
    pipes = {} if rank == 0 else dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    there = [] if rank % 2 == 0 else ['ip', 'netns', 'exec', spaces[1]]
    return subprocess.Popen(there + command, env=own, **pipes)
for rank in [start(rank) for rank in range(count)]:
    rank.wait()
"""


class Wire(threading.Thread):
    """Two tun devices, and what carries packets between them: later, and not all of them."""

    DELAY, LOSS = 0.001, 0.01
    SET_NAME, TUN_WITHOUT_HEADER = 0x400454CA, 0x1001

    def __init__(self, devices):
        super().__init__(daemon=True)
        self.ends = [self.device(name) for name in devices]
        self.carried = self.lost = 0
        self.over = False
        self.start()

    def device(self, name):
        end = os.open('/dev/net/tun', os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(end, self.SET_NAME, struct.pack('16sH22x', name.encode(), self.TUN_WITHOUT_HEADER))
        return end

    def run(self):
        others, due, chance = dict(zip(self.ends, reversed(self.ends))), collections.deque(), random.Random(1)
        while not self.over:
            wait = max(0, due[0][0] - time.monotonic()) if due else 0.1
            for end in select.select(self.ends, [], [], wait)[0]:
                with contextlib.suppress(OSError):
                    due.append((time.monotonic() + self.DELAY, others[end], os.read(end, 65536)))
            while due and due[0][0] <= time.monotonic():
                _, end, packet = due.popleft()
                self.carried += 1
                if chance.random() < self.LOSS:
                    self.lost += 1
                    continue
                # A device that is down takes nothing.
                with contextlib.suppress(OSError):
                    os.write(end, packet)

    def end(self):
        self.over = True
        self.join()
        for end in self.ends:
            os.close(end)


class TwoHosts:
    """Two network namespaces with a bad wire between them."""

    SUBNET = '198.18.77'

    def __init__(self):
        self.names = [f'ckptd-ranks-{os.getpid()}-{side}' for side in 'ab']
        self.devices = [f'ckr{side}{os.getpid() % 100000}' for side in 'ab']
        self.wire = None

    def up(self):
        run = slurm_check.run
        for name in self.names:
            run('ip', 'netns', 'add', name)
            run('ip', '-n', name, 'link', 'set', 'lo', 'up')
        self.wire = Wire(self.devices)
        for name, device, number in zip(self.names, self.devices, (1, 2)):
            run('ip', 'link', 'set', device, 'netns', name)
            run('ip', '-n', name, 'addr', 'add', f'{self.SUBNET}.{number}/24', 'dev', device)
            run('ip', '-n', name, 'link', 'set', device, 'txqueuelen', '5000', 'up')

    def cut(self, seconds):
        slurm_check.run('ip', '-n', self.names[1], 'link', 'set', self.devices[1], 'down')
        time.sleep(seconds)
        slurm_check.run('ip', '-n', self.names[1], 'link', 'set', self.devices[1], 'up')

    def down(self):
        if self.wire:
            self.wire.end()
        for name in self.names:
            subprocess.run(['ip', 'netns', 'delete', name], capture_output=True, check=False)


def two_hosts(place, expected, facts, cut):
    """A training on ranks of two hosts, `cut` from one another for so many seconds."""
    hosts = TwoHosts()
    training = Training(place, f'two-hosts-{cut}-{facts["sharded"]}', **facts)
    try:
        hosts.up()
        (training.folder / 'two_hosts.py').write_text(TWO_HOSTS)
        launcher = ['python3', 'two_hosts.py', '{count}', *hosts.names]
        within = ['ip', 'netns', 'exec', hosts.names[0]]
        training.start(launcher, 3, within, CKPTD_RANKS_ADDRESS=f'{hosts.SUBNET}.1:29177')
        if cut:
            training.says(r'step \d+ done', 2)
            hosts.cut(cut)
        training.ended(0)
        root = training.root()
    finally:
        training.end()
        hosts.down()
    if root != expected:
        raise Miss(f'root {root[:24]} and not {expected[:24]}')
    return f'{root[:24]}; 1 ms each way, {hosts.wire.lost} of {hosts.wire.carried} packets lost'


# Starts each rank but rank 0 where the job's folder is an empty one: in a mount namespace.
NO_FOLDER = """
import os, subprocess, sys
count, folder, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
hidden = ['unshare', '--mount', 'sh', '-c', 'mount -t tmpfs none "$0" && exec "$@"', folder]
def start(rank):
    own = dict(os.environ, RANK=str(rank), WORLD_SIZE=str(count))
    if rank == 0:
        return subprocess.Popen(command, env=own)
    return subprocess.Popen(hidden + command, env=own, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
for rank in [start(rank) for rank in range(count)]:
    rank.wait()
"""


def no_folder(place, expected, facts):
    """Two sessions of three ranks, of which rank 0 alone sees the store and the data."""
    training = Training(place, f'no-folder-{facts["sharded"]}', **facts)
    (place.folder / 'no_folder.py').write_text(NO_FOLDER)
    launcher = ['python3', str(place.folder / 'no_folder.py'), '{count}', str(training.folder)]
    try:
        training.start(launcher, 3)
        training.says(r'step \d+ done', 2)
        training.agent.terminate()
        training.ended(0, 75)
        training.start(launcher, 3)
        training.ended(0)
        came = re.findall(r'the (state|tokens) came from rank 0', training.log())
        root = training.root()
    finally:
        training.end()
    if root != expected:
        raise Miss(f'root {root[:24]} and not {expected[:24]}')
    if sorted(came) != ['state', 'state', 'tokens', 'tokens']:
        raise Miss(f'of rank 0 came: {came}')
    return f'{root[:24]}; state and tokens came from rank 0'


# A rank other than 0 where nothing starts ranks together: again, until the session is over.
ALONE = 'until ckptd-gpt2; do sleep 1; done'


def by_themselves(place, expected, facts):
    """Three ranks, each started by itself with its place in the environment, of which one dies."""
    training = Training(place, f'themselves-{facts["sharded"]}', **facts)
    place_of = {'WORLD_SIZE': '3', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '29178', 'CKPTD_RANKS_SECRET': 'of a check'}
    own = {MARK: f'{training.name}.{os.getpid()}', **place_of}
    others = []
    try:
        for rank in (1, 2):
            environment = {**os.environ, **own, 'RANK': str(rank)}
            log = (training.folder / f'rank-{rank}').open('wb')
            others.append(subprocess.Popen(['sh', '-c', ALONE], stdout=log, stderr=log, env=environment))
            log.close()
        training.start('none', 1, **place_of, RANK='0')
        training.says(r'step \d+ done', 2)
        os.kill(training.processes('ckptd-gpt2')[1], signal.SIGKILL)
        training.ended(0)
        codes = [other.wait(PATIENCE) for other in others]
        root = training.root()
    finally:
        for other in others:
            other.kill()
        training.end()
    if root != expected or any(codes) or 'restarting it' not in training.log():
        raise Miss(f'root {root[:24]} and not {expected[:24]}, exit codes {codes}')
    return f'{root[:24]}; rank 1 was killed, and all came together again'


class Place:
    def __init__(self, folder, programs, mpi=None):
        self.folder, self.programs, self.mpi = folder, programs, mpi


def session(training, launcher, count, target):
    """One session in which `target` is killed. Returns what was killed."""
    training.start(launcher, count)
    training.says(r'step \d+ done')
    time.sleep(random.random() * 1.5)
    if training.agent.poll() is not None:
        return 'nothing: it was done'
    steps = training.steps_done()
    try:
        killed = training.kill(target)
    except (ProcessLookupError, KeyError):
        if training.agent.wait(PATIENCE) == 0:
            return 'nothing: it was done'
        raise
    if killed == 'daemon':
        training.agent.wait(PATIENCE)
        return killed
    until = time.monotonic() + PATIENCE
    while training.steps_done() < steps + 2 and training.agent.poll() is None:
        if time.monotonic() > until:
            raise Miss(f'no step after {killed} was killed: {training.log().splitlines()[-4:]}')
        time.sleep(0.05)
    for pid in training.processes('ckptd').values():
        os.kill(pid, signal.SIGTERM)
    training.ended(0, 75)
    return killed


def chain(place, launcher, sessions, expected, facts):
    training = Training(place, f'chain-{launcher}-{facts["backend"]}', **facts)
    targets = ['rank', 'rank 0', 'launcher', 'daemon'] * sessions
    said = []
    try:
        for number in range(sessions):
            count, training.facts['sharded'] = random.choice(range(1, 7)), random.random() < 0.5
            sharded = ' sharded' if training.facts['sharded'] else ''
            said.append(f'{count}{sharded}:{session(training, launcher, count, targets[number])}')
        root = training.complete(launcher, random.choice(range(1, 7)))
    finally:
        training.end()
    if root != expected:
        raise Miss(f'root {root[:24]} and not {expected[:24]} after {", ".join(said)}')
    return f'{root[:24]}; ranks:killed {", ".join(said)}'


def lacks(slurm_trouble):
    """{launcher: why it cannot be tried here}"""
    missing = {}
    if shutil.which('torchrun') is None:
        missing['torchrun'] = 'torchrun is not in PATH: run make setup-full'
    if shutil.which('mpirun') is None and os.geteuid() == 0 and shutil.which('apt-get'):
        subprocess.run(['apt-get', 'install', '-y', '-qq', '--no-install-recommends', 'openmpi-bin'], check=False)
    if shutil.which('mpirun') is None:
        missing['mpirun'] = 'mpirun is missing: apt-get install --no-install-recommends openmpi-bin'
    if slurm_trouble:
        missing['srun'] = slurm_trouble
    return missing


def bring_up(slurm, programs):
    trouble = slurm_check.needs(programs)
    if trouble:
        return trouble
    try:
        slurm.up()
    except (Miss, OSError, subprocess.SubprocessError) as miss:
        return f'Slurm does not come up here: {miss}'
    return None


def way(launcher, backend):
    return launcher.replace('none', 'plain processes') + (' over MPI' if backend == 'mpi' else '')


def roots(place, arguments, missing):
    """A row per job and launcher. Returns whether all held."""
    held, only = True, arguments.only
    jobs = [{'optimizer': optimizer, 'accumulation': leaves} for optimizer in ('adamw', 'sgd') for leaves in (6, 8)]
    jobs += [{'precision': 'bf16'}, {'preset': 'gpt2', 'steps': 3, 'accumulation': 6}]
    jobs = [{**job, 'sharded': sharded} for job in jobs[: 1 if arguments.short else None] for sharded in (False, True)]
    expected = None
    for number, job in enumerate(jobs):
        facts = {'optimizer': 'adamw', 'accumulation': 6, **job}
        sharded, is_special = facts['sharded'], 'precision' in facts or 'preset' in facts
        name = f'{facts["optimizer"]}, {facts["accumulation"]} micro-batches'
        name = {'precision': 'bf16', 'preset': 'gpt2, 3 steps'}.get(next(iter(job)), name)
        name += ', sharded' if sharded else ''
        # A sharded optimizer ends where a whole one does.
        expected = expected if sharded else None
        wanted = [kind for kind in WAYS[: 1 if is_special else None] if only in f'{name}, {way(*kind)}']
        for launcher, backend in wanted:
            what = f'{name}, {way(launcher, backend)}'
            lacking = missing.get(launcher) or (backend == 'mpi' and missing.get('mpi'))
            if lacking:
                slurm_check.row('none', what, lacking)
                continue
            counts = (3, 4) if sharded else (1, 3, 4)
            counts = (1, 2, 3) if is_special else COUNTS if launcher == 'none' else counts
            counts = [count for count in counts if count > 1] if backend == 'mpi' else counts
            counts = [count for count in counts if count in (1, 3)] if arguments.short else counts
            found = {}
            try:
                if expected is None and launcher != 'none':
                    expected = Training(place, f'{number}-alone', **facts).complete('none', 1)
                for count in counts:
                    training = Training(place, f'{number}-{launcher}-{backend}-{count}', **{**facts, 'backend': backend})
                    found[count] = training.complete(launcher, count)
                    shutil.rmtree(training.folder)
            except (Miss, subprocess.SubprocessError) as miss:
                slurm_check.row('MISS', what, f'{count} ranks: {miss}')
                held = False
                continue
            expected = expected or found[min(found)]
            same = set(found.values()) == {expected}
            held &= same
            ranks = ', '.join(map(str, counts))
            slurm_check.row('ok' if same else 'MISS', what, f'{ranks} ranks: {expected[:24]}' if same else found)
    return held


def elsewhere(place, only):
    """Ranks on two hosts, and ranks without the job's folder. Returns whether all held."""
    facts = {'steps': 8, 'accumulation': 6}
    checks = [
        ('two hosts, 3 ranks', 'ip', lambda expected, facts: two_hosts(place, expected, facts, 0)),
        ('two hosts, cut for 30 s', 'ip', lambda expected, facts: two_hosts(place, expected, facts, 30)),
        ('each rank by itself', '', lambda expected, facts: by_themselves(place, expected, facts)),
        ('no store in common, 3 ranks', 'unshare mount', lambda expected, facts: no_folder(place, expected, facts)),
    ]
    held, expected = True, None
    for name, tools, check, sharded in [(*check, sharded) for check in checks for sharded in (False, True)]:
        what = name + (', sharded' if sharded else '')
        if only not in what:
            continue
        lacking = [tool for tool in tools.split() if not shutil.which(tool)]
        if tools and (os.geteuid() != 0 or lacking or not os.path.exists('/dev/net/tun')):
            needs = f'it needs root, {tools} (apt-get install iproute2 util-linux mount) and /dev/net/tun'
            slurm_check.row('none', what, needs)
            continue
        try:
            expected = expected or Training(place, 'one-host', **facts).complete('none', 1)
            slurm_check.row('ok', what, check(expected, {**facts, 'sharded': sharded}))
        except (Miss, OSError, subprocess.SubprocessError) as miss:
            slurm_check.row('MISS', what, miss)
            held = False
    return held


def chains(place, arguments, missing):
    """A chain of sessions per launcher. Returns whether all held."""
    held = True
    facts = {'steps': 40 if arguments.short else 90, 'accumulation': 6}
    ways = [(launcher, backend) for launcher, backend in WAYS if arguments.only in f'chain, {way(launcher, backend)}']
    expected = Training(place, 'undisturbed', **facts).complete('none', 1) if ways else None
    for launcher, backend in ways:
        what = f'chain, {way(launcher, backend)}, {arguments.sessions} kills'
        lacking = missing.get(launcher) or (backend == 'mpi' and missing.get('mpi'))
        if lacking:
            slurm_check.row('none', what, lacking)
            continue
        try:
            said = chain(place, launcher, arguments.sessions, expected, {**facts, 'backend': backend})
            slurm_check.row('ok', what, said)
        except (Miss, OSError, KeyError, subprocess.SubprocessError) as miss:
            slurm_check.row('MISS', what, miss)
            held = False
    return held


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('programs', nargs='?', type=Path, default=ROOT / 'target/release')
    parser.add_argument('--mpi', type=Path, help='programs that were built with the feature ckptd-gpt2/mpi')
    parser.add_argument('--only', default='', help='checks whose name holds this text')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--short', action='store_true', help='one job, 1 and 3 ranks')
    parser.add_argument('--sessions', type=int, default=12, help='sessions of a chain')
    parser.add_argument('--keep', action='store_true', help='leave the folder with all logs')
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    programs = arguments.programs.resolve()
    python = ROOT / '.cache/python/bin'
    os.environ['PATH'] = f'{programs}:{os.environ["PATH"]}:/usr/sbin:/sbin:{python}'
    os.environ.update(OMPI_ALLOW_RUN_AS_ROOT='1', OMPI_ALLOW_RUN_AS_ROOT_CONFIRM='1')
    for name in [name for name in os.environ if name.startswith(('SLURM_', 'SALLOC_', 'SRUN_', 'SBATCH_'))]:
        del os.environ[name]
    folder = Path(tempfile.mkdtemp(prefix='ckptd-ranks.'))
    folder.chmod(0o755)
    (folder / 'slurm').mkdir()
    slurm = Slurm(folder / 'slurm')
    place = Place(folder, programs, arguments.mpi and arguments.mpi.resolve())
    held = True
    try:
        missing = lacks(bring_up(slurm, programs))
        if place.mpi is None or not (place.mpi / 'ckptd-gpt2').exists():
            missing['mpi'] = 'no programs that were built with MPI are there: scripts/mpi_programs.sh FOLDER, then --mpi FOLDER'
        held = roots(place, arguments, missing)
        held &= elsewhere(place, arguments.only)
        held &= chains(place, arguments, missing)
    finally:
        slurm.down()
        if arguments.keep or not held:
            print(f'the logs are in {folder}')
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return int(not held)


if __name__ == '__main__':
    sys.exit(main())
