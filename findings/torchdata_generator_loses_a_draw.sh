#!/usr/bin/env bash
# torchdata's StatefulDataLoader with a generator of its own (generator=, shuffle=True) and without workers: a loader that
# goes on from a saved state gives the rest of the epoch exactly, and then shuffles all later epochs in other ways than
# the loader that was not interrupted. When an epoch begins, the order is drawn from that generator, and then a seed for
# workers, also where there are none. The saved state is that of before both; loading it draws the order anew, but not
# the seed. Exact are: without generator=, since the two draws then have different sources; with workers, where the seed
# is drawn first; and the way out, the generator given to a RandomSampler and not to the loader.
#
# torchdata 0.11.0 with torch 2.11.0 from PyPI. Seen in November 2026, saved in the middle of an epoch and at its end: the
# rest of the epoch is always equal; the later epochs are other with generator= and without workers, else equal.
#
# Exit status: 0 where it behaves so, 1 where it does not. Takes some minutes; needs python3 with venv and 6 GB in TMPDIR.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv python
python/bin/pip install --quiet --disable-pip-version-check torch==2.11.0 torchdata==0.11.0 numpy
cat >show.py <<'PY'
import sys

import torch
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import RandomSampler

ROWS, BATCH, EPOCHS = 64, 8, 4
EACH = ROWS // BATCH


def make(kind, workers, seed):
    torch.manual_seed(seed)
    generator, data = torch.Generator().manual_seed(seed), range(ROWS)
    how = {
        "shuffle": {"shuffle": True},
        "shuffle, generator": {"shuffle": True, "generator": generator},
        "RandomSampler with generator": {"sampler": RandomSampler(data, generator=generator)},
    }[kind]
    return StatefulDataLoader(data, batch_size=BATCH, num_workers=workers, **how)


def compare(kind, workers, stop):
    """Whether what is left of the epoch is equal, and whether the later epochs are."""
    loader, seen, state = make(kind, workers, 1), [], None
    for _ in range(EPOCHS):
        for batch in loader:
            seen.append(batch.tolist())
            if len(seen) == stop:
                state = loader.state_dict()
    # With another seed, so that all comes from the state.
    loader, resumed = make(kind, workers, 2), []
    loader.load_state_dict(state)
    while len(resumed) < len(seen) - stop:
        resumed += [batch.tolist() for batch in loader]
    rest = -stop % EACH
    return resumed[:rest] == seen[stop:stop + rest], resumed[rest:] == seen[stop + rest:]


if __name__ == "__main__":
    wrong = False
    for kind in ("shuffle", "shuffle, generator", "RandomSampler with generator"):
        for workers in (0, 2):
            for stop in (EACH + 3, 2 * EACH):
                rest, later = compare(kind, workers, stop)
                wrong |= not rest or later == ((kind, workers) == ("shuffle, generator", 0))
                print(f"{kind}; {workers} workers; saved after {stop} batches: "
                      + (f"the rest of the epoch is {'equal' if rest else 'other'}, " if stop % EACH else "")
                      + f"later epochs are {'equal' if later else 'other'}")
    sys.exit(wrong)
PY
python/bin/python show.py 2>errors.txt || { cat errors.txt >&2; exit 1; }
