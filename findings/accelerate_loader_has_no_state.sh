#!/usr/bin/env bash
# Who saves a training asks an object for `state_dict` and `load_state_dict` to see whether it has a state of its own:
# torch.distributed.checkpoint's Stateful is such a protocol, checked with isinstance. The loader that accelerate's
# `prepare` returns passes that test whatever it was made of, and raises AttributeError when the state is asked for,
# unless stateful loaders were chosen in its configuration.
#
# accelerate 1.15.0, torch 2.11.0, from PyPI. Seen in November 2026: isinstance says True, and state_dict() raises
# AttributeError ('DataLoader' object has no attribute 'dl_state_dict'), before the first batch and in the middle of an
# epoch; the torch DataLoader that it was made of is none, rightly.
#
# Exit status: 0 where it behaves so, 1 where it does not. Takes some minutes; needs python3 with venv and 6 GB in TMPDIR.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv python
python/bin/pip install --quiet --disable-pip-version-check torch==2.11.0 accelerate==1.15.0 numpy
cat >show.py <<'PY'
import torch
from accelerate import Accelerator
from torch.distributed.checkpoint.stateful import Stateful
from torch.utils.data import DataLoader, TensorDataset

plain = DataLoader(TensorDataset(torch.arange(8.0)), batch_size=2)
prepared = Accelerator(cpu=True).prepare(plain)


def asked(loader):
    try:
        return type(loader.state_dict()).__name__
    except AttributeError as error:
        return f"AttributeError: {error}"


seen = [isinstance(plain, Stateful), isinstance(prepared, Stateful), asked(prepared)]
batches = iter(prepared)
next(batches)
seen.append(asked(prepared))
print(*seen, sep="\n")
raise SystemExit(not (seen[:2] == [False, True] and all("dl_state_dict" in said for said in seen[2:])))
PY
python/bin/python show.py 2>errors.txt || { cat errors.txt >&2; exit 1; }
