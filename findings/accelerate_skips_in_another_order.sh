#!/usr/bin/env bash
# accelerate resumes in the middle of an epoch by load_state and skip_first_batches. With a shuffling DataLoader and its
# default configuration the two do not fit together: save_state keeps torch's generator as it is in the middle of the epoch,
# so that after load_state the epoch is shuffled anew, and what is skipped are other samples than those that were trained on.
# Some samples of that epoch are trained on twice and as many never, and nothing says so. With use_seedable_sampler=True and
# set_epoch in every epoch it goes on exactly; at an epoch's end the default does, too.
#
# accelerate 1.15.0, torch 2.11.0, from PyPI. Seen in November 2026, 64 samples in batches of 8, saved after 3 batches of the
# second epoch: of that epoch's samples 15 came twice and 15 never with the default, 0 and 0 with the seedable sampler.
#
# Exit status: 0 where it behaves so, 1 where it does not. Takes some minutes; needs python3 with venv and 6 GB in TMPDIR.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv python
python/bin/pip install --quiet --disable-pip-version-check torch==2.11.0 accelerate==1.15.0 numpy
cat >show.py <<'PY'
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from torch import nn, optim
from torch.utils.data import DataLoader

SAMPLES, ROWS, STOP = 64, 8, 11
EPOCH = STOP * ROWS // SAMPLES


def prepared(seedable):
    set_seed(1)
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=seedable))
    model = nn.Linear(1, 1)
    loader = DataLoader(range(SAMPLES), batch_size=ROWS, shuffle=True)
    _, _, loader = accelerator.prepare(model, optim.SGD(model.parameters()), loader)
    return accelerator, loader


def second_epoch(seedable, folder):
    """Its samples: until a session ended, and from there on in the next one."""
    accelerator, loader = prepared(seedable)
    batches = 0
    for epoch in range(EPOCH + 1):
        seen = []
        loader.set_epoch(epoch)
        for batch in loader:
            batches, seen = batches + 1, seen + batch.tolist()
            if batches == STOP:
                accelerator.save_state(folder)
                break
    accelerator, loader = prepared(seedable)
    accelerator.load_state(folder)
    loader.set_epoch(EPOCH)
    for batch in accelerator.skip_first_batches(loader, STOP % (SAMPLES // ROWS)):
        seen += batch.tolist()
    return seen


shown = {}
for seedable in (False, True):
    seen = second_epoch(seedable, f"state-{seedable}")
    shown[seedable] = len(seen) - len(set(seen)), SAMPLES - len(set(seen))
    twice, never = shown[seedable]
    print(f"use_seedable_sampler={seedable}: of {SAMPLES} samples {twice} came twice, {never} never")
raise SystemExit(not (min(shown[False]) > 0 and shown[True] == (0, 0)))
PY
python/bin/python show.py 2>errors.txt || { cat errors.txt >&2; exit 1; }
