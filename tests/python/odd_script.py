"""Training scripts that do what scripts do, for tests/training_scripts.rs: `odd_script.py MODE`, in the job's folder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

mode = sys.argv[1]
if mode == "unused":
    sys.exit(0)
if mode == "hang":
    time.sleep(6)

import ckptd
import torch
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)


def update() -> torch.Tensor:
    loss = model(torch.randn(8, 16)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def streams() -> None:
    from tqdm import tqdm

    run = ckptd.attach(model, optimizer)
    subprocess.run(["echo", "a child's line"], check=True)
    for _ in tqdm(range(1_000_000)):
        loss = update()
        time.sleep(0.01)
        run.step(loss=loss)
        print("printed", run.steps_done)


def hang() -> None:
    run = ckptd.attach(model, optimizer)
    while run.steps_done < 20:
        loss = update()
        if run.steps_done == 5 and not Path("has-hung").exists():
            Path("has-hung").touch()
            time.sleep(1000)
        run.step(loss=loss)


def note(step: int) -> None:
    """What the state is at a boundary, by another way than ckptd's."""
    raw = b"".join(bytes(tensor.detach().numpy().tobytes()) for tensor in model.state_dict().values())
    Path(f"boundary-{step}").write_bytes(raw)


def unannounced() -> None:
    """Between two boundaries and before the update, a write that no version counter tells, and later one that does."""
    run = ckptd.attach(model, optimizer)
    while run.steps_done < 200:
        time.sleep(0.02)
        if run.steps_done < 100:
            model[0].weight.data.add_(0.001)
        else:
            with torch.no_grad():
                model[2].bias.add_(0.001)
        loss = update()
        note(run.steps_done + 1)
        run.step(loss=loss)


def compare() -> None:
    """Holds every snapshot that is left against what was noted at its boundary."""
    compared = 0
    for path in sorted(Path("store/snapshots").iterdir()):
        snapshot = ckptd.Snapshot(path)
        snapshot.verify()
        saved = snapshot.state_dict()
        raw = b"".join(saved[name].numpy().tobytes() for name in model.state_dict())
        assert raw == Path(f"boundary-{snapshot.step}").read_bytes(), f"{path} is torn"
        compared += 1
    print(compared)


def between() -> None:
    """The session ends between the steps of two optimisers."""
    optimizers = [torch.optim.SGD(part.parameters(), lr=1e-2) for part in (model[0], model[2])]
    run = ckptd.attach(model, optimizers)
    while True:
        loss = model(torch.randn(8, 16)).square().mean()
        model.zero_grad()
        loss.backward()
        optimizers[0].step()
        if run.steps_done == 5:
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(1)
        optimizers[1].step()
        run.step(loss=loss)


def best() -> None:
    """Other weights are loaded after the last step; with `save`, that step is saved before."""
    run = ckptd.attach(model, optimizer)
    for _ in range(run.steps_done, 10):
        loss = update()
        run.step(loss=loss)
    torch.save(model[0].weight.detach().clone(), "last.pt")
    if sys.argv[2:] == ["save"]:
        run.save()
    with torch.no_grad():
        model[0].weight.fill_(0.5)


def is_last() -> None:
    """Whether the newest snapshot has the last step's weights (True), or those that were loaded then (False)."""
    saved = ckptd.open("store")["latest"]["0.weight"]
    last = torch.load("last.pt")
    assert torch.equal(saved, last) or torch.equal(saved, torch.full_like(saved, 0.5))
    print(torch.equal(saved, last))


def fetched() -> None:
    """The newest step of a remote, read by its URL twice; and one that is not there."""
    steps = [ckptd.open(sys.argv[2], cache="cache")["latest"].step for _ in range(2)]
    try:
        ckptd.open("file:///nowhere/at/all")
    except ckptd.CkptdError as error:
        print(steps, error)


def ranks() -> None:
    """Two ranks, one of which is slow, and that say after which step they end."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    run = ckptd.attach(parallel, optimizer)
    try:
        while True:
            time.sleep(0.02 * rank)
            loss = parallel(torch.randn(8, 16)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss=loss)
    finally:
        print(f"rank {rank} ends after step {run.steps_done}", file=sys.stderr)


def early() -> None:
    """Ranks that have not attached yet, and that nothing ends but a signal."""
    Path(f"rank-{os.environ['RANK']}").write_text(str(os.getpid()))
    time.sleep(1000)


def apart() -> None:
    """Ranks that nothing keeps together."""
    torch.distributed.init_process_group("gloo")
    torch.manual_seed(torch.distributed.get_rank())
    run = ckptd.attach(model, optimizer)
    while run.steps_done < 1000:
        run.step(loss=update())


def trainer() -> None:
    """A Trainer on several ranks."""
    from ckptd.lightning import Callback

    Callback().checkpoint()


def refused() -> None:
    ckptd.attach(model, optimizer, extra={"words": {1, 2}})


modes = (streams, hang, unannounced, compare, between, best, is_last, fetched, ranks, early, apart, trainer, refused)
{function.__name__: function for function in modes}[mode]()
sys.stdout.flush()
assert "CKPTD_SOCKET" not in os.environ or mode in ("compare", "is_last", "fetched")
