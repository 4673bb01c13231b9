#!/usr/bin/env python3
"""Draws docs/picture.svg from a real run, a training that is left alone and the same one killed in the middle, and
docs/history.svg, what `ckptd plot` makes of a training in four sessions.

    scripts/picture.py [FOLDER OF ckptd AND ckptd-gpt2]     (default: target/release)

Needs nothing but Python and the two programs, and takes about two minutes.
"""

import html
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / 'target/release').resolve()
STEPS = 200
JOB = f"""
[job]
store = "NAME"
threads = 1
[model]
preset = "gpt2-mini"
[data]
text = ["text.txt"]
[train]
steps = {STEPS}
batch_size = 1
sequence_length = 64
eval_every = 0
[snapshot]
every_steps = 20
"""


def ckptd(*arguments):
    return [str(PROGRAMS / 'ckptd'), *arguments]


def status(folder, job):
    return json.loads(subprocess.check_output(ckptd('status', '--json', job), cwd=folder))


def run(folder, name, kill_after=None, kill_at=0, stop_after=None):
    """Runs a job; returns what it said. `kill_after`: kills daemon and worker soon after this step is verified and
    step `kill_at` is done; `stop_after`: ends the session then."""
    lines = []
    job = f'{name}.toml'
    daemon = subprocess.Popen(ckptd('run', job), cwd=folder, stderr=subprocess.PIPE, text=True)
    for line in daemon.stderr:
        # Without the time.
        lines.append(re.sub(r'^[-0-9]+ [:0-9]+ [-+:0-9]+ ', '', line.rstrip()))
        if kill_after and lines[-1].startswith(f'verified step {kill_after}:'):
            while status(folder, job)['step'] < kill_at:
                time.sleep(0.01)
            worker = status(folder, job)['worker']['pid']
            os.kill(daemon.pid, signal.SIGKILL)
            os.kill(worker, signal.SIGKILL)
            kill_after = None
        if stop_after and lines[-1].startswith(f'verified step {stop_after}:'):
            daemon.terminate()
            stop_after = None
    daemon.wait()
    return lines


def root(folder, name):
    listed = json.loads(subprocess.check_output(ckptd('list', '--json', f'{name}.toml'), cwd=folder))
    assert listed[0]['step'] == STEPS and listed[0]['state'] == 'verified', listed[0]
    return listed[0]['root']


def told(lines):
    """The lines to show: how it began, the last snapshot, how it ended."""
    starting = [line for line in lines if line.startswith(('starting', 'resuming'))]
    verified = [line for line in lines if line.startswith('verified')]
    finished = [line for line in lines if line.startswith('finished')]
    assert not finished or verified[-1].startswith(f'verified step {STEPS}:'), lines
    return starting + ['...'] + verified[-1:] + finished


def draw(rows):
    width, line_height, top = 820, 21, 52
    height = top + line_height * len(rows) + 10
    colours = {'prompt': '#7ee787', 'command': '#ffffff', 'kill': '#ff7b72', 'text': '#b1bac4', 'root': '#79c0ff', 'note': '#d2a8ff'}
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img"',
        '  aria-label="A training that is killed and goes on ends with the same root as one that is left alone.">',
        '<!-- Made by scripts/picture.py from a real run. -->',
        f'<rect width="{width}" height="{height}" rx="10" fill="#0d1117" stroke="#30363d"/>',
    ]
    svg += [f'<circle cx="{22 + 20 * i}" cy="20" r="6" fill="{fill}"/>' for i, fill in enumerate(('#ff5f57', '#febc2e', '#28c840'))]
    svg.append('<g font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,DejaVu Sans Mono,monospace" font-size="14" xml:space="preserve">')
    for i, spans in enumerate(rows):
        parts = ''.join(f'<tspan fill="{colours[kind]}">{html.escape(text)}</tspan>' for kind, text in spans)
        svg.append(f'<text x="20" y="{top + line_height * i + 6}">{parts}</text>')
    return '\n'.join([*svg, '</g>', '</svg>', ''])


def draw_history(folder):
    """A training of more steps in four sessions; one of them is killed some steps after its last snapshot."""
    job = JOB.replace('NAME', 'sessions').replace(f'steps = {STEPS}', 'steps = 600\nwarmup_steps = 40')
    job = job.replace('eval_every = 0', 'eval_every = 75').replace('every_steps = 20', 'every_steps = 150')
    job = job.replace('batch_size = 1', 'batch_size = 1\ngrad_accumulation = 4')
    (folder / 'sessions.toml').write_text(job.replace('[job]', '[job]\nname = "gpt2-mini, four sessions"'))
    run(folder, 'sessions', stop_after=150)
    run(folder, 'sessions', kill_after=300, kill_at=368)
    run(folder, 'sessions', stop_after=450)
    run(folder, 'sessions')
    picture = ROOT / 'docs/history.svg'
    subprocess.run(ckptd('plot', 'sessions.toml', '-o', str(picture)), cwd=folder, check=True)


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        # Text that is everywhere the same: this project's own documents on formats.
        text = ''.join((ROOT / 'docs' / name).read_text() for name in ('format.md', 'codec.md'))
        (folder / 'text.txt').write_text(text)
        for name in ('alone', 'killed'):
            (folder / f'{name}.toml').write_text(JOB.replace('NAME', name))
        alone = run(folder, 'alone')
        before = run(folder, 'killed', kill_after=100)
        after = run(folder, 'killed')
        draw_history(folder)
        roots = root(folder, 'alone'), root(folder, 'killed')
        assert roots[0] == roots[1], roots
        assert before[-1] and not any(line.startswith('finished') for line in before), before

    def typed(command, kind='command', note=''):
        return [('prompt', '$ '), (kind, command), ('note', note)]

    def said(lines):
        return [[('text', line)] for line in lines]

    def listed(name, value):
        return [typed(f"ckptd list --json {name}.toml | jq -r '.[0].root'"), [('root', value)]]

    rows = [
        typed('ckptd run alone.toml', note='                  # never disturbed'),
        *said(told(alone)),
        *listed('alone', roots[0]),
        [],
        typed('ckptd run killed.toml &', note='               # the same training'),
        *said(told(before)),
        typed('kill -9 $(pgrep ckptd)', 'kill', '                # the daemon and its worker'),
        typed('ckptd run killed.toml'),
        *said(told(after)),
        *listed('killed', roots[1]),
        [('note', 'the same parameters, moments, data position and randomness, bit for bit')],
    ]
    (ROOT / 'docs/picture.svg').write_text(draw(rows))


main()
