#!/usr/bin/env bash
# TensorBoard follows a run's folder file by file: it reads one event file, and goes to the next one when that has no more
# to give. Where the file that it reads now is deleted, it never goes on: it says the same warning at each reload, and
# shows what it has, however many newer event files there are. A reader that is started then sees all of them. So who
# rewrites the files of a curve must leave the one there that a running TensorBoard may read: emptied, not deleted.
#
# tensorboard 2.20.0 with setuptools 80.9.0 from PyPI, its Python reader (EventAccumulator), seen in November 2026.
#
# Exit status: 0 where it behaves so, 1 where it does not. Takes half a minute; needs python3 with venv.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv python
python/bin/pip install --quiet --disable-pip-version-check tensorboard==2.20.0 setuptools==80.9.0
cat >show.py <<'PY'
import pathlib
import time

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter


def write(name, steps):
    with open(f"run/{name}", "wb") as file:
        records = RecordWriter(file)
        records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        for step in steps:
            event = Event(wall_time=time.time(), step=step)
            event.summary.value.add(tag="loss", simple_value=1.0)
            records.write(event.SerializeToString())
        records.flush()


def steps(reader):
    reader.Reload()
    return [event.step for event in reader.Scalars("loss")]


def follow(delete):
    pathlib.Path("run").mkdir(exist_ok=True)
    for file in pathlib.Path("run").iterdir():
        file.unlink()
    write("events.out.tfevents.1000000001.host", [1, 2])
    reader = EventAccumulator("run")
    steps(reader)
    if delete:
        pathlib.Path("run/events.out.tfevents.1000000001.host").unlink()
    write("events.out.tfevents.1000000002.host", [3, 4])
    write("events.out.tfevents.1000000003.host", [5, 6])
    return [steps(reader) for _ in range(3)][-1], steps(EventAccumulator("run"))


kept, deleted = follow(False), follow(True)
print("the file that was read stays:     goes on to", kept[0], "- a new reader sees", kept[1])
print("the file that was read is deleted: goes on to", deleted[0], "- a new reader sees", deleted[1])
everything = [1, 2, 3, 4, 5, 6]
raise SystemExit(kept != (everything, everything) or deleted != ([1, 2], [3, 4, 5, 6]))
PY
python/bin/python show.py 2>errors.txt || { cat errors.txt >&2; exit 1; }
