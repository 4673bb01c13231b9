#!/usr/bin/env python3
"""Runs examples/slurm.sbatch under a real Slurm of one node, with the real programs and a small training.

    scripts/slurm_check.py [FOLDER OF ckptd AND ckptd-gpt2] [--only TEXT] [--keep]

Brings up munged, slurmctld and slurmd on the loopback interface, with everything they write below one folder, and ends
them again. One line per check; exit 1 if any fails or cannot be run. Needs root and Debian's packages slurmctld, slurmd,
slurm-client and munge.
"""

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = 'apt-get install --no-install-recommends slurmctld slurmd slurm-client munge'
# Seconds from SIGTERM to SIGKILL.
KILL_WAIT = 20
# Seconds from the announcement of a preemption to its end.
GRACE_TIME = 20
# Checks that run at once: they wait for most of their time.
PLACES = 4
# Slurm looks at limits every half minute.
PATIENCE = 420

CONFIGURATION = """\
ClusterName=check
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={next_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=10
CredType=cred/munge
PlugStackConfig={folder}/plugstack.conf
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerNode=512
SchedulerParameters=sched_interval=2,bf_interval=2
PriorityType=priority/basic
JobRequeue=1
KillWait={kill_wait}
MinJobAge=300
InactiveLimit=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=16000 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE DefaultTime=10 PriorityTier=1 GraceTime={grace_time} State=UP
PartitionName=urgent Nodes={host} MaxTime=INFINITE DefaultTime=10 PriorityTier=2 State=UP
"""

JOB = """\
[job]
store = "store"
threads = 1
[model]
preset = "gpt2-mini"
[data]
text = ["text.txt"]
[train]
steps = {steps}
batch_size = 1
sequence_length = 32
eval_every = 0
[snapshot]
every = "1h"
[session]
grace = "15s"
{session}
"""


class Miss(Exception):
    """A check that did not hold."""


def run(*command, check=True, timeout=60, cwd=None):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=timeout, cwd=cwd)
    if check and done.returncode != 0:
        raise Miss(f'{" ".join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}')
    return done.stdout.strip()


def wait(what, condition, patience=PATIENCE):
    """The first true value of `condition`."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        found = condition()
        if found:
            return found
        time.sleep(0.5)
    raise Miss(f'waited {patience} s in vain: {what}')


def alive(pid, name):
    try:
        return Path(f'/proc/{pid}/comm').read_text().strip() == name
    except OSError:
        return False


class Slurm:
    """One node; jobs of the partition `urgent` take the place of those of `all`."""

    def __init__(self, folder):
        self.folder = folder
        self.daemons = []

    def up(self):
        for name in ('munge', 'state', 'spool'):
            (self.folder / name).mkdir()
        (self.folder / 'plugstack.conf').touch()
        os.chmod(self.folder / 'munge', 0o755)
        key = self.folder / 'key'
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        host = socket.gethostname().split('.')[0]
        facts = dict(host=host, port=port, next_port=port + 1, folder=self.folder)
        facts.update(kill_wait=KILL_WAIT, grace_time=GRACE_TIME)
        (self.folder / 'slurm.conf').write_text(CONFIGURATION.format(**facts))
        os.environ['SLURM_CONF'] = str(self.folder / 'slurm.conf')
        munge = self.folder / 'munge'
        run(
            'munged',
            '--force',
            f'--key-file={key}',
            f'--socket={munge}/socket',
            f'--pid-file={munge}/pid',
            f'--log-file={munge}/log',
            f'--seed-file={munge}/seed',
        )
        self.daemons.append(('munged', munge / 'pid'))
        self.controller_up()
        self.daemons.append(('slurmctld', self.folder / 'slurmctld.pid'))
        run('slurmd')
        self.daemons.append(('slurmd', self.folder / 'slurmd.pid'))
        idle = lambda: 'idle' in run('sinfo', '-h', '-o', '%T', check=False)
        wait('the node is idle', idle, 60)

    def controller_up(self):
        run('slurmctld')
        wait('the controller answers', lambda: ' UP' in run('scontrol', 'ping', check=False), 60)

    def controller_down(self):
        self.end('slurmctld', self.folder / 'slurmctld.pid')

    def end(self, name, pid_file):
        try:
            pid = int(pid_file.read_text())
        except (OSError, ValueError):
            return
        # The number may be another process's by now.
        if alive(pid, name):
            os.kill(pid, signal.SIGTERM)
            until = time.monotonic() + 15
            while alive(pid, name) and time.monotonic() < until:
                time.sleep(0.1)
            if alive(pid, name):
                os.kill(pid, signal.SIGKILL)

    def down(self):
        if len(self.daemons) == 3:
            run('scancel', '--user=root', check=False)
            until = time.monotonic() + 40
            while run('squeue', '-h', check=False) and time.monotonic() < until:
                time.sleep(0.5)
        for name, pid_file in reversed(self.daemons):
            self.end(name, pid_file)


class Check:
    """A job of the recipe in a folder of its own."""

    def __init__(self, folder, programs, name, steps=10_000_000, session='', recipe=(), slow=0):
        self.folder = folder / name
        self.folder.mkdir()
        self.programs = programs
        numbers = ' '.join(str(i * i // 7 % 1013) for i in range(1, 20000))
        (self.folder / 'text.txt').write_text(numbers)
        self.job_file('finetune.toml', steps, session, slow)
        text = (ROOT / 'examples/slurm.sbatch').read_text()
        for old, new in recipe:
            if old not in text:
                raise Miss(f'examples/slurm.sbatch has no {old!r}')
            text = text.replace(old, new)
        (self.folder / 'job.sbatch').write_text(text)

    def job_file(self, name, steps, session, slow=0):
        text = JOB.format(steps=steps, session=session)
        if slow:
            # Hears only after so many seconds that it is to stop.
            script = self.folder / 'slow.sh'
            script.write_text(
                'exec 3<&0\npipe=$(mktemp -u)\nmkfifo "$pipe"\n'
                'while IFS= read -r line <&3; do\n'
                f'  case $line in *\'"command":"stop"\'*) sleep {slow} ;; esac\n'
                '  printf "%s\\n" "$line" || exit\n'
                f'done 2>/dev/null >"$pipe" &\nexec {self.programs}/ckptd-gpt2 <"$pipe" 3<&-\n'
            )
            text += f'[worker]\ncommand = ["/bin/sh", "{script}"]\n'
        (self.folder / name).write_text(text)

    def submit(self, *options):
        path = self.folder / 'job.sbatch'
        name = '%x-%a.log' if '--array' in ' '.join(options) else 'log'
        # The recipe works in the folder that it was submitted from.
        done = run('sbatch', '--parsable', f'--output={self.folder}/{name}', *options, path, cwd=self.folder)
        self.id = done.split(';')[0]
        return self.id

    def log(self, name='log'):
        try:
            return (self.folder / name).read_text(errors='replace')
        except OSError:
            return ''

    def says(self, text, count=1, log='log'):
        """Waits until the log does; a job that failed says nothing more."""

        def said():
            if len(re.findall(text, self.log(log))) >= count:
                return True
            if self.state() == 'FAILED':
                raise Miss(f'the job failed: {self.log(log).splitlines()[-2:]}')
            return False

        return wait(f'{text!r} {count} times', said)

    def trains(self, sessions=1, log='log'):
        self.says(r'training \d+ parameters', sessions, log)
        # Some steps, so that there is something to lose.
        time.sleep(3)

    def show(self, field, job=None):
        text = run('scontrol', 'show', 'job', job or self.id, check=False)
        found = re.search(rf'\b{field}=(\S+)', text)
        return found.group(1) if found else ''

    def state(self, job=None):
        return self.show('JobState', job)

    def ends(self, *states, job=None):

        def ended():
            state = self.state(job)
            if state == 'FAILED' and 'FAILED' not in states:
                raise Miss(f'the job failed: {self.log().splitlines()[-2:]}')
            return state in states and state

        return wait(f'state {states}', ended)

    def saved(self, log='log'):
        """The last steps that sessions say are saved and verified, and how many they say are lost."""
        text = self.log(log)
        saved = [int(step) for step in re.findall(r'session over .*: step (\d+) of \d+ is saved and verified', text)]
        lost = [int(n) for n in re.findall(r'(\d+) later steps are lost', text)]
        return saved, sum(lost)

    def nothing_lost(self):
        saved, lost = self.saved()
        if not saved or lost:
            raise Miss(f'saved {saved}, {lost} steps lost: {self.log().splitlines()[-3:]}')
        return saved


def completes(place):
    # How many steps a session of this budget makes here.
    budget = 'budget = "12s"'
    probe = Check(*place, 'probe', session=budget)
    probe.submit('--time=10', '--signal=B:USR2@1')
    probe.says('session over')
    steps = probe.nothing_lost()[0] * 6
    run('scancel', probe.id, check=False)
    job = Check(*place, 'completes', steps=steps, session=budget)
    job.submit('--time=10', '--signal=B:USR2@1')
    job.ends('COMPLETED')
    sessions = len(re.findall('session over', job.log())) + 1
    restarts = int(job.show('Restarts'))
    if restarts < 4 or f'finished: all {steps} steps' not in job.log():
        raise Miss(f'{restarts} restarts: {job.log().splitlines()[-2:]}')
    return f'COMPLETED, {sessions} sessions, {restarts} restarts, {steps} steps'


def stays_cancelled(place):
    job = Check(*place, 'cancelled')
    job.submit('--time=10')
    job.trains()
    run('scancel', job.id)
    job.ends('CANCELLED')
    saved = job.nothing_lost()
    # It would be pending again by now.
    time.sleep(15)
    if job.state() != 'CANCELLED' or run('squeue', '-h', '-j', job.id, check=False):
        raise Miss(f'it is {job.state()}')
    return f'step {saved[-1]} saved, CANCELLED after 15 s more'


def array_requeues_one(place):
    job = Check(*place, 'array', recipe=[('run finetune.toml', 'run task$SLURM_ARRAY_TASK_ID.toml')])
    for task in (1, 2):
        job.job_file(f'task{task}.toml', 10_000_000, '')
        path = job.folder / f'task{task}.toml'
        path.write_text(path.read_text().replace('"store"', f'"store{task}"'))
    array = job.submit('--time=10', '--array=1-2', '--job-name=task')
    for task in (1, 2):
        job.trains(log=f'task-{task}.log')
    # The last task's own id is the array's.
    run('scancel', '--batch', '--signal=USR2', f'{array}_2')
    job.trains(2, log='task-2.log')
    first = job.log('task-1.log')
    restarts = [job.show('Restarts', f'{array}_{task}') for task in (1, 2)]
    if 'session over' in first or restarts != ['0', '1'] or 'is no time' in first + job.log('task-2.log'):
        raise Miss(f'restarts {restarts}: {first.splitlines()[-2:]}')
    run('scancel', array)
    wait('both tasks are cancelled', lambda: not run('squeue', '-h', '-j', array, check=False))
    return 'restarts of the two tasks: 0 and 1'


def survives_suspension(place):
    job = Check(*place, 'suspended')
    job.submit('--time=1')
    job.trains()
    run('scontrol', 'suspend', job.id)
    end = time.monotonic() + 75
    wait('the old end is past', lambda: time.monotonic() > end, 100)
    run('scontrol', 'resume', job.id)
    job.says('stood still for')
    job.trains(2)
    saved = job.nothing_lost()
    run('scancel', job.id)
    job.ends('CANCELLED')
    return f'75 s past its minute, step {saved[0]} saved, none lost'


def uses_extension(place):
    job = Check(*place, 'extended')
    job.submit('--time=2', '--signal=B:USR2@1')
    job.trains()
    run('scontrol', 'update', f'JobId={job.id}', 'TimeLimit=20')
    job.says(r'the session ends in 1[0-9]m')
    time.sleep(100)
    if 'session over' in job.log() or job.state() != 'RUNNING':
        raise Miss(f'{job.state()}: {job.log().splitlines()[-2:]}')
    run('scancel', job.id)
    job.ends('CANCELLED')
    return '2 min extended to 20: still training after 2'


def keeps_shortening(place):
    # Nothing but squeue tells it.
    job = Check(*place, 'shortened', recipe=[('#SBATCH --signal=B:USR2@180\n', '')])
    job.submit('--time=6')
    job.trains()
    run('scontrol', 'update', f'JobId={job.id}', 'TimeLimit=2')
    job.says('session over')
    saved = job.nothing_lost()
    job.trains(2)
    run('scancel', job.id)
    job.ends('CANCELLED')
    reason = re.search(r'session over \(([^)]*)\)', job.log()).group(1)
    return f'6 min shortened to 2: {reason}, step {saved[0]} saved, requeued'


def saves_on_two_signals(place):
    job = Check(*place, 'signals', slow=4)
    job.submit('--time=10')
    job.trains()
    run('scancel', '--batch', '--signal=USR2', job.id)
    time.sleep(0.5)
    run('scancel', '--batch', '--signal=TERM', job.id)
    job.says('session over')
    saved = job.nothing_lost()
    if 'ending as it is' in job.log():
        raise Miss('the second signal ended it')
    job.ends('CANCELLED', 'FAILED', 'PENDING', 'RUNNING')
    run('scancel', job.id, check=False)
    return f'the last snapshot takes 4 s, SIGTERM after 0.5: step {saved[0]} saved'


def waits_for_controller(place, slurm):
    job = Check(*place, 'controller', session='budget = "20s"')
    job.submit('--time=10', '--signal=B:USR2@1')
    job.trains()
    slurm.controller_down()
    job.says('session over')
    saved = job.nothing_lost()
    time.sleep(25)
    slurm.controller_up()
    job.trains(2)
    restarts = job.show('Restarts')
    run('scancel', job.id)
    job.ends('CANCELLED')
    return f'down for 25 s: step {saved[0]} saved, restarts {restarts}'


def comes_back_preempted(place):
    batch = Check(*place, 'preempted')
    signal = '#SBATCH --signal=B:USR2@180\n'
    recipe = (ROOT / 'examples/slurm.sbatch').read_text()
    # srun passes no signals on: the step hears Slurm's own.
    changes = [(line, '') for line in recipe.splitlines(keepends=True) if line.startswith('trap ')]
    changes += [(signal, signal.replace('B:', '')), ('\nckptd run', '\nsrun ckptd run')]
    step = Check(*place, 'preempted-srun', recipe=changes)
    for job in (batch, step):
        job.submit('--time=10')
    for job in (batch, step):
        job.trains()
    urgent = run('sbatch', '--parsable', '--partition=urgent', '--exclusive', '--output=/dev/null', '--wrap=sleep 5')
    wait('the urgent job runs', lambda: batch.state(urgent) in ('RUNNING', 'COMPLETED'))
    said = []
    for job in (batch, step):
        job.trains(2)
        saved, restarts = job.nothing_lost(), job.show('Restarts')
        if restarts != '1':
            raise Miss(f'{restarts} restarts: {job.log().splitlines()[-2:]}')
        run('scancel', job.id)
        job.ends('CANCELLED')
        said.append(f'step {saved[0]} saved')
    return f'restarts 1 and 1; {said[0]}, with srun {said[1]}'


def needs(programs):
    if os.geteuid() != 0:
        return 'it needs root'
    for program in ('munged', 'slurmctld', 'slurmd', 'sbatch', 'squeue', 'scontrol', 'scancel', 'sinfo'):
        if shutil.which(program) is None:
            return f'{program} is missing: {PACKAGES}'
    for program in ('ckptd', 'ckptd-gpt2'):
        if not os.access(programs / program, os.X_OK):
            return f'{programs / program} is missing; run make build first'
    return None


def row(word, what, said):
    print(f'{word:5} {what:44} {said}', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('programs', nargs='?', type=Path, default=ROOT / 'target/release')
    parser.add_argument('--only', default='', help='checks whose name holds this text')
    parser.add_argument('--keep', action='store_true', help='leave the folder with all logs')
    arguments = parser.parse_args()
    programs = arguments.programs.resolve()
    os.environ['PATH'] = f'{programs}:{os.environ["PATH"]}:/usr/sbin:/sbin'
    lack = needs(programs)
    if lack:
        print(f'slurm-check: not run: {lack}')
        return 1
    # What this shell has of another Slurm is none of this one's business.
    for name in [name for name in os.environ if name.startswith(('SLURM_', 'SQUEUE_', 'SBATCH_'))]:
        del os.environ[name]
    folder = Path(tempfile.mkdtemp(prefix='ckptd-slurm.'))
    folder.chmod(0o755)
    slurm = Slurm(folder)
    place = (folder, programs)
    checks = [
        ('recipe: to completion over 5 sessions', lambda: completes(place)),
        ('scancel: saved, stays cancelled', lambda: stays_cancelled(place)),
        ('array: one task alone is requeued', lambda: array_requeues_one(place)),
        ('suspended past its end: no step is lost', lambda: survives_suspension(place)),
        ('TimeLimit extended: used', lambda: uses_extension(place)),
        ('TimeLimit shortened: kept', lambda: keeps_shortening(place)),
        ('USR2, then TERM: still saved', lambda: saves_on_two_signals(place)),
    ]
    # The others need the controller, or their places on the node.
    alone = [
        ('controller down for 25 s: requeued', lambda: waits_for_controller(place, slurm)),
        ('preempted, with srun and without: goes on', lambda: comes_back_preempted(place)),
    ]
    failed = False

    def tried(check):
        what, does = check
        try:
            row('ok', what, does())
        except (Miss, subprocess.TimeoutExpired) as miss:
            row('MISS', what, miss)
            return False
        return True

    try:
        try:
            slurm.up()
        except Miss as miss:
            print(f'slurm-check: not run: Slurm does not come up here: {miss}; see {folder}')
            arguments.keep = True
            return 1
        row('ok', 'a Slurm of one node', run('slurmctld', '-V'))
        with ThreadPoolExecutor(PLACES) as pool:
            failed = not all(list(pool.map(tried, [check for check in checks if arguments.only in check[0]])))
        for check in [check for check in alone if arguments.only in check[0]]:
            run('scancel', '--user=root', check=False)
            failed = not tried(check) or failed
    finally:
        slurm.down()
        if not arguments.keep and not failed:
            shutil.rmtree(folder, ignore_errors=True)
        elif failed:
            print(f'the logs are in {folder}')
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())
