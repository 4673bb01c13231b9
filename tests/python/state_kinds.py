"""Every kind of state that a training may have, saved and put back by the package `ckptd`, bit for bit.

For each kind: a training makes some steps and is captured; another one, freshly made, is restored from that snapshot and
captured: both have one root, and the same one after more steps of both. One bit of each tensor and one character of each
text changes the root. Then what must be refused, by its path.
"""

import collections
import functools
import json
import math
import os
import random
import shutil
import sys
import tempfile
import threading
from pathlib import Path

import ckptd
import numpy
import torch
from ckptd import CkptdError, Snapshot
from ckptd._loader import LoaderPosition
from ckptd._native import SnapshotWriter
from ckptd._ranks import RankPlace
from ckptd._state import PREFIX, TrainingState
from torch import nn
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import AveragedModel

torch.set_num_threads(1)
STEPS = 3
# In memory, where there is such a folder: a thousand roots are made of files.
store = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
for folder in ("snapshots", "staging"):
    os.mkdir(os.path.join(store, folder))
writer = SnapshotWriter(store, "0" * 32, 1, 1, 1)


def net(dtype=torch.float32, bias=True):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 12, bias=bias), nn.Tanh(), nn.Linear(12, 4, bias=bias)).to(dtype)


def wide_net():
    """With tensors of 4096 numbers, the least that are kept in eight bits."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 512), nn.Tanh(), nn.Linear(512, 8))


def eight_bit_optimizers():
    """Those of torchao, whose state are tensors of parts, and of bitsandbytes; from a folder of their own, since other
    libraries behave otherwise where these are installed."""
    sys.path.append(str(Path(__file__).parents[2] / ".cache/eightbit"))
    import bitsandbytes
    import torchao.optim

    # Compiling their steps takes longer than all the rest here.
    torch._dynamo.config.disable = True
    ours = {f"torchao {name}": getattr(torchao.optim, name) for name in ("AdamW8bit", "AdamW4bit", "AdamWFp8")}
    theirs = {
        f"bitsandbytes {name}": getattr(bitsandbytes.optim, name) for name in ("AdamW8bit", "Lion8bit", "SGD8bit")
    }
    rates = {"bitsandbytes SGD8bit": {"lr": 0.1, "momentum": 0.9}}
    return {name: functools.partial(kind, **rates.get(name, {"lr": 1e-3})) for name, kind in {**ours, **theirs}.items()}


class Training:
    """A model with all that belongs to it."""

    def __init__(self, model, optimizers, schedules=(), extra=None, inputs=None):
        self.model, self.optimizers, self.schedules = model, list(optimizers), list(schedules)
        self.extra, self.inputs = extra or {}, inputs or (lambda: torch.randn(4, 8))
        self.state = TrainingState(model, self.optimizers, self.schedules, self.extra)
        self.steps, self.position = 0, LoaderPosition()

    def step(self):
        def closure():
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            dtype = next(self.model.parameters()).dtype
            loss = self.model(self.inputs().to(dtype)).abs().square().float().mean()
            loss.backward()
            return loss

        loss = closure()
        for optimizer in self.optimizers:
            optimizer.step(closure) if isinstance(optimizer, torch.optim.LBFGS) else optimizer.step()
        for schedule in self.schedules:
            is_plateau = isinstance(schedule, schedulers.ReduceLROnPlateau)
            schedule.step(loss.item()) if is_plateau else schedule.step()
        for value in self.extra.values():
            if isinstance(value, AveragedModel):
                value.update_parameters(self.model)
        self.steps += 1

    def capture(self):
        return self.state.capture(self.state.boundary(self.steps, self.position, {}), 1)


def write(capture, step, settings=None):
    """The snapshot's file and root."""
    about = {
        "step": step,
        "epoch": 0,
        "position": 0,
        "tokens": 0,
        "loss": None,
        "settings": settings or capture.settings,
        "host": "",
        "device": "cpu",
        "torch": torch.__version__,
        "reason": "test",
        "hurried": False,
        "hashes": [],
    }
    flight = writer.begin([item.given() for item in capture.items], capture.items, about)
    flight.judge()
    said = flight.wait()
    assert "path" in said, said
    return said["path"], said["root"]


def restore(training, path):
    snapshot = Snapshot(path)
    settings = training.state.restore(snapshot._file, snapshot.manifest, False, RankPlace(0, 1))
    training.steps = snapshot.step
    return settings


def go_on(training, seed):
    torch.manual_seed(seed)
    for _ in range(2):
        training.step()
    return training.capture()


def check_kind(name, make, version):
    random.seed(1), numpy.random.seed(1), torch.manual_seed(2)
    first = make()
    for _ in range(STEPS):
        first.step()
    capture = first.capture()
    path, root = write(capture, first.steps)
    assert json.loads(json.dumps(Snapshot(path).manifest))["format"] == version, f"{name}: another version"
    random.seed(9), numpy.random.seed(9), torch.manual_seed(9)
    second = make()
    restore(second, path)
    (
        random.seed(1),
        numpy.random.seed(1),
        torch.set_rng_state(torch.tensor([], dtype=torch.uint8).new_tensor(list(state_of(capture)))),
    )
    again = second.capture()
    assert write(again, second.steps)[1] == root, f"{name}: {difference(capture, again)}"
    # A flipped bit of any tensor, and any other text, make another root.
    roots = {root}
    for item in capture.items:
        if item.memory.numel():
            raw = item.memory.view(-1).view(torch.uint8)
            raw[-1] ^= 1
            roots.add(write(capture, first.steps)[1])
            raw[-1] ^= 1
    for index, (key, text) in enumerate(capture.settings):
        changed = [*capture.settings]
        changed[index] = (key, text[:-1] + ("}" if text[-1] != "}" else "]"))
        roots.add(write(capture, first.steps, changed)[1])
    # bitsandbytes has one table for all of its parameters.
    full = {item.memory.data_ptr() for item in capture.items if item.memory.numel()}
    assert len(roots) == 1 + len(full) + len(capture.settings), f"{name}: a change without another root"
    left, right = go_on(first, 5), go_on(second, 5)
    assert write(left, 0)[1] == write(right, 0)[1], f"{name}, two steps later: {difference(left, right)}"
    for file in os.scandir(os.path.join(store, "snapshots")):
        os.unlink(file)


def state_of(capture):
    return bytes.fromhex(json.loads(dict(capture.settings)[f"{PREFIX}random.torch"]))


def difference(one, other):
    """What two captures have otherwise."""
    texts = [key for key, text in one.settings if dict(other.settings).get(key) != text]
    pairs = {item.label: item.memory for item in other.items}
    tensors = [
        i.label for i in one.items if i.label not in pairs or not torch.equal(raw(i.memory), raw(pairs[i.label]))
    ]
    return texts + tensors


def raw(tensor):
    return tensor.reshape(-1).view(torch.uint8)


def with_optimizer(make, model=net, **more):
    def training():
        module = model()
        return Training(module, [make(module.parameters())], **more)

    return training


def with_schedule(make):
    def training():
        module = net()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        return Training(module, [optimizer], [make(optimizer)])

    return training


def with_extra(make):
    def training():
        module = net()
        return Training(module, [torch.optim.SGD(module.parameters(), lr=0.1)], extra={"it": make(module)})

    return training


def with_buffer(make):
    def training():
        module = net()
        module.register_buffer("it", make())
        return Training(module, [torch.optim.SGD(module.parameters(), lr=0.1)])

    return training


def tied():
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    module[1].weight = module[0].weight
    return Training(module, [torch.optim.AdamW(module.parameters())])


def norms():
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    return Training(module, [torch.optim.SGD(module.parameters(), lr=0.1)])


def last_channels():
    torch.manual_seed(1)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(module.parameters())
    return Training(module, [optimizer], inputs=lambda: torch.randn(2, 3, 8, 8))


class Counting(nn.Linear):
    """A layer with a state that is no tensor."""

    seen, last = 0, None

    def forward(self, inputs):
        self.seen, self.last = self.seen + len(inputs), inputs.detach().sum(0)
        return super().forward(inputs)

    def get_extra_state(self):
        return {"seen": self.seen, "last": self.last, "all": torch.full((20,), float(self.seen))}

    def set_extra_state(self, state):
        self.seen, self.last = state["seen"], state["last"]


def counting():
    torch.manual_seed(1)
    module = nn.Sequential(Counting(8, 8), nn.Linear(8, 2))
    return Training(module, [torch.optim.SGD(module.parameters(), lr=0.1)], extra={"average": AveragedModel(module)})


def two_optimizers():
    module = net()
    parts = [list(part.parameters()) for part in (module[0], module[2])]
    return Training(module, [torch.optim.SGD(parts[0], lr=0.1, momentum=0.9), torch.optim.AdamW(parts[1])])


def muon_and_adamw():
    module = net()
    matrices = [p for p in module.parameters() if p.dim() == 2]
    vectors = [p for p in module.parameters() if p.dim() < 2]
    return Training(module, [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(vectors)])


def tensor_rate():
    module = net()
    return Training(module, [torch.optim.AdamW(module.parameters(), lr=torch.tensor(1e-3), foreach=False)])


def scaler(_):
    made = torch.amp.GradScaler("cpu")
    made.scale(torch.ones(1))
    return made


def values(_):
    return {
        "none": None, "yes": True, "number": 2**70, "minus": -0.0, "float": 0.1 + 0.2, "nan": math.nan, "inf": -math.inf,
        "text": "\u00e9\"\\\n\ud800", "list": [1, [2, ()]], "tuple": (1, (2.5, "x")), "bytes": b"\0\xff", "$odd": 1,
        "by number": {1: "a", 2.5: "b", None: "c"}, "size": torch.Size([2, 3]), "type": torch.bfloat16,
        "device": torch.device("cpu"), "counter": collections.Counter({3: 2}), "deque": collections.deque([1, 2], maxlen=3),
        "ordered": collections.OrderedDict(b=1, a=2), "numpy": numpy.float32(0.1), "array": numpy.arange(3, dtype=">i2"),
        "large": numpy.random.default_rng(1).random((30, 40)), "small tensor": torch.tensor([1, 2], dtype=torch.int16),
        "tensor": torch.arange(100.0), "nested": [{"a": torch.ones(3, 30)}],
    }  # fmt: skip


OPTIMIZERS = {
    "AdamW": (lambda p: torch.optim.AdamW(p), 1),
    "AdamW foreach": (lambda p: torch.optim.AdamW(p, foreach=True), 1),
    "AdamW fused": (lambda p: torch.optim.AdamW(p, fused=True), 1),
    "AdamW amsgrad": (lambda p: torch.optim.AdamW(p, amsgrad=True), 2),
    "AdamW maximize": (lambda p: torch.optim.AdamW(p, maximize=True), 1),
    "Adam": (lambda p: torch.optim.Adam(p, weight_decay=0.1), 1),
    "SGD": (lambda p: torch.optim.SGD(p, lr=0.1), 1),
    "SGD momentum": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 1),
    "SGD nesterov": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), 1),
    "SGD fused": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True), 1),
    "Adagrad": (lambda p: torch.optim.Adagrad(p), 2),
    "Adadelta": (lambda p: torch.optim.Adadelta(p), 2),
    "Adamax": (lambda p: torch.optim.Adamax(p), 2),
    "ASGD": (lambda p: torch.optim.ASGD(p), 2),
    "NAdam": (lambda p: torch.optim.NAdam(p), 1),
    "RAdam": (lambda p: torch.optim.RAdam(p), 1),
    "RMSprop": (lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.9), 2),
    "Rprop": (lambda p: torch.optim.Rprop(p), 2),
    "LBFGS": (lambda p: torch.optim.LBFGS(p, max_iter=2), 2),
    "Adafactor": (lambda p: torch.optim.Adafactor(p), 1),
}
SCHEDULES = {
    "StepLR": lambda o: schedulers.StepLR(o, 2),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [2, 4]),
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda step: 0.9**step),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 10),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 2),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.1, 20),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.01, 0.1, 3),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.9),
    "LinearLR": lambda o: schedulers.LinearLR(o),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o), schedulers.CosineAnnealingLR(o, 9)], milestones=[2]
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler([schedulers.LinearLR(o), schedulers.StepLR(o, 2)]),
}
BUFFERS = [
    "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "uint16", "uint32", "uint64",
    "float8_e4m3fn", "float8_e5m2", "complex64", "complex128",
]  # fmt: skip


def buffer(name):
    dtype = getattr(torch, name)
    width = torch.empty((), dtype=dtype).element_size()
    raw = torch.arange(12 * width, dtype=torch.uint8)
    return (raw % 2 if dtype is torch.bool else raw).view(dtype).reshape(3, 4)


def kinds():
    for name, (make, version) in OPTIMIZERS.items():
        yield name, with_optimizer(make), version
    for name, make in SCHEDULES.items():
        yield name, with_schedule(make), 1
    for name in BUFFERS:
        yield f"a buffer of {name}", with_buffer(lambda name=name: buffer(name)), 1
    yield "an empty buffer", with_buffer(lambda: torch.empty(0, 3)), 1
    yield "a scalar buffer", with_buffer(lambda: torch.tensor(3)), 1
    yield "a strided buffer", with_buffer(lambda: torch.arange(12.0).reshape(3, 4).t()), 1
    yield "bfloat16 parameters", with_optimizer(lambda p: torch.optim.AdamW(p), lambda: net(torch.bfloat16)), 1
    yield (
        "complex parameters",
        with_optimizer(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda: net(torch.complex64)),
        1,
    )
    yield "tied parameters", tied, 1
    yield "BatchNorm and dropout", norms, 1
    yield "channels last", last_channels, 1
    yield "modules with a state of their own", counting, 2
    yield "two optimizers", two_optimizers, 1
    yield "Muon and AdamW", muon_and_adamw, 1
    for name, make in eight_bit_optimizers().items():
        yield name, with_optimizer(make, wide_net), 2
    yield "a rate that is a tensor", tensor_rate, 1
    yield "an average of the weights", with_extra(lambda m: AveragedModel(m)), 2
    yield "a tensor of one's own", with_extra(lambda m: torch.arange(30.0)), 2
    yield "GradScaler", with_extra(scaler), 1
    yield "torch.Generator", with_extra(lambda m: torch.Generator().manual_seed(4)), 1
    yield "random.Random", with_extra(lambda m: random.Random(4)), 1
    yield "numpy.random.Generator", with_extra(lambda m: numpy.random.default_rng(4)), 1
    yield "plain values of all types", with_extra(values), 2
    yield "a list", with_extra(lambda m: [1, 2.5, "x"]), 1


class Odd:
    def state_dict(self):
        return {"it": self.it}

    def load_state_dict(self, state):
        self.it = state["it"]


def odd(value):
    made = Odd()
    made.it = value
    return made


def sparse():
    return torch.eye(3).to_sparse()


class Subclass(torch.Tensor):
    pass


def ranked():
    """A process group of this process alone."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)


def divided_optimizer(module):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    ranked()
    return module, [ZeroRedundancyOptimizer(module.parameters(), torch.optim.SGD, lr=0.1)], [], {}


def hooked_ranks(module):
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

    ranked()
    parallel = nn.parallel.DistributedDataParallel(module)
    parallel.register_comm_hook(powerSGD_hook.PowerSGDState(None), powerSGD_hook.powerSGD_hook)
    return parallel, [torch.optim.SGD(module.parameters(), lr=0.1)], [], {}


class Lookahead(torch.optim.Optimizer):
    """An optimiser around another one."""

    def __init__(self, base):
        super().__init__(base.param_groups, {})
        self.base = base


def inference():
    with torch.inference_mode():
        return torch.ones(3)


def saying(value):
    module = Counting(8, 8)
    module.get_extra_state = lambda: value
    return module


def refusals():
    """What is refused, where, and what the text says."""
    sgd = lambda m: [torch.optim.SGD(m.parameters(), lr=0.1)]
    extra = lambda value: lambda m: (m, sgd(m), [], {"it": value})
    yield extra({1, 2}), "extra['it']"
    yield extra(3.5), "extra['it']"
    yield extra(lambda: 1), "extra['it']"
    yield extra({"a": [0, {1}]}), "extra.it['a'][1]"
    yield extra({"a": object()}), "extra.it['a']"
    yield extra({"a": lambda: 1}), "extra.it['a']"
    yield extra({(1, 2): 3}), "extra.it"
    yield extra({"a": collections.defaultdict(int)}), "extra.it['a']"
    yield extra({"a": numpy.array([object()])}), "extra.it['a']"
    yield extra({"a": frozenset()}), "extra.it['a']"
    yield extra({"a": 1 + 2j}), "extra.it['a']"
    yield extra(odd({1})), "extra.it['it']"
    yield extra(odd(open)), "extra.it['it']"
    yield extra({"a": sparse()}), "extra.it['a'] has the layout torch.sparse_coo"
    yield extra(torch.ones(3).as_subclass(Subclass)), "state extra.it is a __main__.Subclass"
    yield extra(torch.empty(3, device="meta")), "is on the device meta"
    yield lambda m: ("a model", sgd(m), [], {}), "model"
    yield lambda m: (m, [object()], [], {}), "optimizer 0"
    yield lambda m: (m, sgd(m), [object()], {}), "scheduler 0"
    yield lambda m: (m, sgd(net()), [], {}), "optimizer 0, group 0, parameter 0"
    yield lambda m: (m, [Lookahead(torch.optim.AdamW(m.parameters()))], [], {}), "optimizer=optimizer.base"
    yield extra(torch.ones(1).expand(8)), "state extra.it is expanded"
    yield extra(inference()), "state extra.it was made under torch.inference_mode()"
    yield extra({"a": torch.ones(1).expand(80)}), "extra.it['a'] is expanded"
    yield extra(saying({1})), "module.extra.it..get_extra_state()"
    yield divided_optimizer, "optimizer 0 is a ZeroRedundancyOptimizer"
    yield hooked_ranks, "the communication hook powerSGD_hook"


def check_refusals():
    count = 0
    for number, (make, expected) in enumerate(refusals()):
        module = net()
        try:
            model, optimizers, schedules, extra = make(module)
            state = TrainingState(model, optimizers, schedules, extra)
            state.capture(state.boundary(0, LoaderPosition(), {}), 1)
        except (CkptdError, ValueError) as error:
            assert expected in str(error), f"refusal {number}: {expected!r} is not in {str(error)!r}"
            count += 1
        else:
            raise AssertionError(f"refusal {number} ({expected}) was taken")
    return count


def check_reading():
    """A store is read by name, tensor by tensor; a thread counts meanwhile; a flipped bit is damage."""
    training = with_optimizer(torch.optim.AdamW, lambda: nn.Linear(2048, 2048))()
    capture = training.capture()
    about_size = sum(item.memory.numel() * 4 for item in capture.items)
    counted = 0
    path, root = None, None
    done = threading.Event()

    def work():
        nonlocal path, root
        path, root = write(capture, 7)
        done.set()

    threading.Thread(target=work).start()
    while not done.is_set():
        counted += 1
    assert counted > 100, f"{counted} turns of a loop while {about_size} bytes were encoded: the lock was held"
    snapshot = ckptd.open(store)["latest"]
    assert (snapshot.step, snapshot.root, len(snapshot)) == (7, root, 2)
    assert torch.equal(snapshot["weight"], training.model.weight)
    assert all(torch.equal(snapshot.state_dict()[key], value) for key, value in training.model.state_dict().items())
    snapshot.verify()
    raw = bytearray(Path(path).read_bytes())
    raw[5000] ^= 1
    Path(path).write_bytes(raw)
    for read in (lambda: ckptd.Snapshot(path).verify(), lambda: ckptd.Snapshot(path).state_dict()):
        try:
            read()
        except ckptd.SnapshotDamaged as error:
            assert "weight" in str(error), error
        else:
            raise AssertionError("a flipped bit was read")


def main():
    check_reading()
    for file in os.scandir(os.path.join(store, "snapshots")):
        os.unlink(file)
    count = 0
    for name, make, version in kinds():
        check_kind(name, make, version)
        count += 1
    print(f"{count} kinds of state came back bit for bit; {check_refusals()} were refused by their path")


if __name__ == "__main__":
    try:
        sys.exit(main())
    finally:
        shutil.rmtree(store)
