"""Rules that a training under the package `ckptd` keeps, each in a process of its own: `script_rules.py [RULE ...]`.

ckptd's agent is replaced by a stand-in in the same process, so that a rule says when a session ends, and reads what was
told. A process attaches once, hence a fork for each rule.
"""

import faulthandler
import importlib
import json
import math
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import ckptd
import torch
from ckptd import CkptdError, _ranks, _run, _state
from ckptd._device import HostCopies, HostCopy
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

PATIENCE_S = 60
SOON_S = 20
# A session that ends is ended with 0, also in the middle of a rule.
HOLDS = 10


RULES = {}


def rule(function):
    RULES[function.__name__] = function
    return function


class StandIn:
    """Speaks as ckptd's agent does. What the package says is in `said`."""

    def __init__(self, every=None, resume=None):
        self.said, self._changed = [], threading.Condition()
        for folder in ("snapshots", "staging", "quarantine"):
            Path("store", folder).mkdir(parents=True, exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        path = os.path.join(tempfile.mkdtemp(), "worker.sock")
        self._listener.bind(path)
        self._listener.listen(1)
        os.environ["CKPTD_SOCKET"] = path
        snapshot = {"level": 1, "encode_threads": 1, "every_steps": every}
        self._start = {"protocol": 1, "run_id": "0" * 32, "next_seq": 100 if resume else 1, "accept_changes": False}
        self._start |= {"resume": resume, "config": {"snapshot": snapshot, "job": {"store": "store"}}}
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        self._connection, _ = self._listener.accept()
        self.tell("start", **self._start)
        for line in self._connection.makefile():
            with self._changed:
                self.said.append(json.loads(line))
                self._changed.notify_all()

    def tell(self, command, **fields):
        self._connection.sendall((json.dumps({"command": command, **fields}) + "\n").encode())

    def stop(self):
        self.tell("stop", snapshot=True, reason="SIGTERM", within_ms=SOON_S * 1000)

    def all(self, event, text=""):
        return [said for said in self.said if said["event"] == event and text in json.dumps(said)]

    def wait_for(self, event, text=""):
        with self._changed:
            assert self._changed.wait_for(lambda: self.all(event, text), SOON_S), (event, text, self.said)

    def steps(self):
        """Those of all snapshots that were committed."""
        return [said["step"] for said in self.all("committed")]


def newest():
    return ckptd.Snapshot(max(Path("store/snapshots").iterdir()))


def is_saved(model, snapshot):
    saved = snapshot.state_dict()
    return all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


class Training:
    """A small model that is trained step by step."""

    def __init__(self, agent, model=None, **more):
        self.agent = agent
        self.model = nn.Linear(40, 40) if model is None else model
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.run = ckptd.attach(self.model, self.optimizer, **more)

    def update(self, forward=lambda: None):
        loss = self.model(torch.randn(4, 40)).square().mean()
        forward()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def step(self, **more):
        """With the end of its snapshot."""
        self.run.step(**more)
        flight = self.run._flight
        if flight is not None:
            assert flight.over.wait(SOON_S)
            self.agent.wait_for("snapshot_failed" if flight.failure else "committed", f'"step": {flight.step},')

    def steps(self, count, forward=lambda: None):
        for _ in range(count):
            self.update(forward)
            self.step()

    def leaves(self):
        """The session is over: another update, or the boundary after it, ends the script."""
        try:
            self.steps(2)
        except SystemExit:
            return
        raise AssertionError("the script goes on")


def refused(call, text):
    try:
        call()
    except CkptdError as error:
        assert text in str(error), error
        return
    raise AssertionError(f"nothing was refused ({text})")


# What is copied, and what a last state is.


@rule
def extras_that_are_written_between_steps_are_copied_from_then_on():
    agent, queue, teacher = StandIn(every=1), torch.zeros(80, 40), nn.BatchNorm1d(40)
    training = Training(agent, extra={"queue": queue, "teacher": teacher})
    written = lambda: (queue.add_(1), teacher(torch.randn(4, 40)))
    training.steps(6, written)
    assert len(agent.all("log", "state extra.queue")) == 1, agent.all("log")
    assert not agent.all("log", "teacher"), agent.all("log")
    written()
    agent.stop()
    agent.wait_for("done")
    saved = newest()
    assert (saved.step, saved.tensor("state", "extra.queue")[0, 0]) == (6, 6), saved
    assert saved.tensor("state", "extra.teacher.num_batches_tracked") == 6


def check_swapped(swap):
    agent = StandIn()
    training = Training(agent)
    training.steps(3)
    kept = [parameter.detach().clone() for parameter in training.model.parameters()]
    for parameter in training.model.parameters():
        swap(parameter, torch.zeros_like(parameter))
    agent.stop()
    agent.wait_for("log", "step 3 is not saved: the model was written since")
    for parameter, own in zip(training.model.parameters(), kept):
        swap(parameter, own)
    training.leaves()
    agent.wait_for("done")
    assert agent.steps() == [4] and is_saved(training.model, newest())


@rule
def weights_that_are_swapped_unseen_when_a_session_ends_are_in_no_snapshot():
    check_swapped(lambda to, value: to.data.copy_(value))


@rule
def weights_that_are_swapped_in_sight_when_a_session_ends_are_in_no_snapshot():
    check_swapped(lambda to, value: to.detach().copy_(value))


@rule
def weights_that_are_put_back_while_that_is_told_are_saved():
    agent = StandIn()
    training = Training(agent)
    training.steps(3)
    kept = training.model.weight.detach().clone()
    training.model.weight.data.zero_()
    warn = training.run._warn

    def put_back(message):
        training.model.weight.data.copy_(kept)
        warn(message)

    training.run._warn = put_back
    agent.stop()
    agent.wait_for("done")
    assert agent.steps() == [3] and is_saved(training.model, newest())


@rule
def a_model_of_another_type_at_the_end_is_told():
    agent = StandIn()
    training = Training(agent)
    training.steps(3)
    training.model.half()
    training.run._finish()
    agent.wait_for("log", "the model was written after step 3")


class Running(nn.Linear):
    """With a buffer that is another tensor after each pass."""

    def __init__(self):
        super().__init__(40, 40)
        self.register_buffer("average", torch.zeros(40))

    def forward(self, inputs):
        outputs = super().forward(inputs)
        self.average = 0.9 * self.average + 0.1 * outputs.detach().mean(0)
        return outputs


@rule
def buffers_may_be_assigned_anew_at_each_step():
    agent = StandIn(every=1)
    training = Training(agent, Running())
    training.steps(5)
    agent.tell("configure", every_steps=None, level=1, encode_threads=1)
    while training.run._every_steps:
        time.sleep(0.01)
    training.steps(1)
    boundary = training.model.average
    training.model(torch.randn(4, 40))
    agent.stop()
    agent.wait_for("done")
    assert agent.steps() == [1, 2, 3, 4, 5, 6] and not agent.all("snapshot_failed"), agent.said
    assert torch.equal(newest()["average"], boundary)


# The place in the data.


def loader(seed=0):
    return DataLoader(torch.arange(12.0), batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(seed))


@rule
def two_loaders_at_once_are_refused():
    training = Training(StandIn())

    def loop():
        for _ in zip(training.run.batches(loader()), training.run.batches(loader())):
            training.steps(1)

    refused(loop, "batches() is under way already")
    training.agent.wait_for("failed", "config")


@rule
def a_loader_that_is_begun_twice_is_refused():
    training, one = Training(StandIn()), loader()

    def loop():
        for _ in zip(training.run.batches(one), training.run.batches(one)):
            training.steps(1)

    refused(loop, "batches() is under way already")


@rule
def a_validation_loader_in_batches_is_refused():
    training = Training(StandIn())

    def loop():
        for _ in training.run.batches(loader()):
            training.steps(1)
        for _ in training.run.batches(loader()):
            training.model(torch.randn(4, 40))

    refused(loop, "iterate over a validation loader directly")


@rule
def a_validation_loader_in_batches_before_the_training_is_refused():
    training = Training(StandIn())
    held = loader()
    for _ in training.run.batches(held):
        training.model(torch.randn(4, 40))
    refused(lambda: next(training.run.batches(loader())), "iterate over a validation loader directly")


@rule
def a_loader_may_be_another_one_in_each_epoch_and_left_in_its_middle():
    training = Training(StandIn())
    for epoch in training.run.epochs(3):
        for number, _ in enumerate(training.run.batches(loader(epoch))):
            training.steps(1)
            if number == epoch:
                break
    assert (training.run.steps_done, training.run.epoch) == (6, 2)


@rule
def epochs_without_batches_are_refused():
    training = Training(StandIn())

    def loop():
        for _ in training.run.epochs(2):
            for _ in loader():
                training.steps(1)

    refused(loop, "a step in epoch 0 of run.epochs()")


@rule
def two_passes_in_an_epoch_are_refused():
    training = Training(StandIn())

    def loop():
        for _ in training.run.epochs(2):
            for half in (loader(1), loader(2)):
                for _ in training.run.batches(half):
                    training.steps(1)

    refused(loop, "a step in epoch 0 of run.epochs()")


# What fails.


def no_memory(*_):
    raise MemoryError("there is none")


@rule
def a_snapshot_that_fails_in_any_way_holds_nothing_up():
    agent = StandIn(every=1)
    training = Training(agent)
    describe, training.run._state.describe = training.run._state.describe, no_memory
    training.steps(1)
    training.run._state.describe = describe
    training.steps(1)
    assert [said["what"] for said in agent.all("snapshot_failed")] == ["MemoryError: there is none"]
    agent.wait_for("committed")
    assert agent.steps() == [2]


@rule
def a_thread_that_cannot_be_started_holds_nothing_up():
    agent = StandIn(every=1)
    training = Training(agent)
    start, threading.Thread.start = threading.Thread.start, no_thread
    training.steps(1)
    threading.Thread.start = start
    training.steps(1)
    assert agent.steps() == [2] and agent.all("snapshot_failed", "no thread could be started")


@rule
def a_last_state_that_fails_in_any_way_ends_the_session():
    agent = StandIn()
    training = Training(agent)
    training.steps(2)
    _state.item_of = no_memory
    agent.stop()
    agent.wait_for("log", "the last state is not saved: MemoryError")
    training.leaves()
    agent.wait_for("done")


@rule
def saving_between_update_and_step_is_refused():
    training = Training(StandIn())
    training.steps(2)
    training.update()
    refused(training.run.save, "call run.step() first")


@rule
def a_last_state_has_the_processors_when_a_session_ends():
    agent = StandIn()
    training = Training(agent)
    training.steps(2)
    agent.stop()
    agent.wait_for("committed")
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == 19


@rule
def a_snapshot_that_is_under_way_when_a_session_ends_has_the_processors():
    seen, conclude = threading.Event(), _run.Run._conclude

    def late(*flight):
        assert seen.wait(SOON_S)
        conclude(*flight)

    _run.Run._conclude = late
    agent = StandIn(every=1)
    training = Training(agent)
    training.update()
    training.run.step()
    flight, here = training.run._flight, threading.get_native_id()
    assert flight.begun.wait(SOON_S)
    # What encodes has ended, and what commits waits for the last word.
    assert flight.native.wait_encoded(SOON_S)
    before = os.getpriority(os.PRIO_PROCESS, here)
    agent.stop()
    while os.getpriority(os.PRIO_PROCESS, here) != 19:
        assert not flight.over.wait(0.01)
    threads = [thread for thread in Path("/proc/self/task").iterdir() if (thread / "comm").read_text() == "ckptd\n"]
    assert threads and all(os.getpriority(os.PRIO_PROCESS, int(thread.name)) == before for thread in threads)
    seen.set()
    agent.wait_for("committed")


@rule
def saving_that_fails_raises():
    training = Training(StandIn())
    training.steps(2)
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    training.run.save()
    assert newest().step == 2
    # The script goes on as before.
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
    training.steps(1)
    with torch.no_grad():
        training.model.weight.add_(1)
    refused(training.run.save, "step 3 is not saved: the model was written since")


def no_thread(_):
    raise RuntimeError("can't create new thread at interpreter shutdown")


@rule
def the_last_step_is_saved_where_no_thread_can_be_started():
    agent = StandIn()
    training = Training(agent)
    training.steps(2)
    threading.Thread.start = no_thread
    training.run._finish()
    agent.wait_for("committed")
    assert agent.steps() == [2]


@rule
def tokens_that_are_no_whole_number_are_refused():
    training = Training(StandIn())
    training.update()
    refused(lambda: training.step(tokens=3.0), "tokens is 3.0, a float")


@rule
def tokens_may_be_a_tensor_of_one_number():
    training = Training(StandIn())
    training.update()
    training.step(tokens=torch.tensor(3))
    assert training.run._tokens == 3


@rule
def a_rate_that_is_no_number_is_refused_by_name():
    training = Training(StandIn())
    training.update()
    training.optimizer.param_groups[0]["lr"] = math.nan
    refused(training.step, "the learning rate of optimizer 0, group 0 is nan")


@rule
def a_buffer_of_inference_mode_is_refused_by_name():
    training = Training(StandIn(), Running())
    training.steps(1)
    training.update()
    with torch.inference_mode():
        training.model.average = torch.ones(40)
    refused(training.step, "buffer average was made under torch.inference_mode()")


# Who else has a training loop.


@rule
def an_update_with_a_closure_begins_after_its_backward_pass():
    training = Training(StandIn())
    open_in_closure = []

    def closure():
        open_in_closure.append(training.run._open)
        training.optimizer.zero_grad()
        loss = training.model(torch.randn(4, 40)).square().mean()
        loss.backward()
        return loss

    for arguments, named in (([closure], {}), ([], {"closure": closure})):
        training.optimizer.step(*arguments, **named)
        assert not training.run._open
        training.step()
    assert open_in_closure == [True, True]


class Counted(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(6.0))


class LateCopies(HostCopies):
    """Takes the CPU's tensors for a GPU's, which has not made their copies before it is told to."""

    def __init__(self):
        super().__init__()
        self._made = threading.Event()

    def make(self):
        self._made.set()

    def synchronize(self):
        assert self._made.wait(SOON_S)

    def bound(self, _):
        pass

    def beside(self, tensor):
        return HostCopy(tensor.detach().clone(), self)

    in_order = beside


@rule
def an_update_does_not_wait_for_the_copies_of_a_gpu():
    agent = StandIn(every=1)
    training = Training(agent)
    copies = training.run._state.copies = LateCopies()
    training.update()
    training.run.step()
    then = {name: value.clone() for name, value in training.model.state_dict().items()}
    # Here it would wait.
    training.update()
    assert not training.run._flight.over.is_set()
    copies.make()
    assert training.run._flight.over.wait(SOON_S)
    agent.wait_for("committed")
    saved = newest().state_dict()
    assert agent.steps() == [1] and all(torch.equal(saved[name], value) for name, value in then.items())


@rule
def an_update_waits_for_what_is_read_later_although_no_tensor_is_read_in_place():
    agent = StandIn(every=1)
    # Its moments are so small that they stand in the text, and its weight is copied at each boundary.
    training = Training(agent, nn.Linear(4, 4, bias=False))
    update = lambda: (training.model(torch.randn(4, 4)).sum().backward(), training.optimizer.step())
    update()
    training.run._state.forget_copies(["param weight"])
    for _ in range(5):
        training.step()
        update()
    collect_later = training.run._state.collect_later

    def late(*given):
        time.sleep(0.5)
        return collect_later(*given)

    training.run._state.collect_later = late
    then = training.optimizer.state[training.model.weight]["exp_avg"].clone()
    training.run.step()
    update()
    assert training.run._flight.over.wait(SOON_S)
    agent.wait_for("committed", '"step": 6,')
    written = dict(newest().settings)["python.optimizer.0"]
    assert then.numpy().tobytes().hex() in written, written


@rule
def a_loader_of_lightning_without_a_length_is_refused():
    import ckptd.lightning

    StandIn()
    refused(lambda: ckptd.lightning.Callback().loader(DataLoader(Counted())), "has no length")


def fit(drawn):
    """Two epochs in Lightning, from where the newest snapshot is."""
    import lightning
    from ckptd.lightning import Callback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def training_step(self, batch, _):
            if run._run._flight is not None:
                assert run._run._flight.over.wait(SOON_S)
            drawn.extend(batch.tolist())
            return self.layer(batch.reshape(-1, 1)).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-4)

    run = Callback()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(callbacks=[run], max_epochs=2, accelerator="cpu", **quiet)
    trainer.fit(Module(), run.loader(loader()), ckpt_path=run.checkpoint())
    return run._run


@rule
def a_loaders_own_generator_goes_on_at_an_epochs_end_in_lightning():
    whole, rest = [], []
    StandIn(every=6)
    run = fit(whole)
    assert run._flight.over.wait(SOON_S)
    # The lock, and the place of the one training.
    del run._writer
    ckptd._attach.attached = None
    StandIn(resume=os.path.abspath("store/snapshots/step-000000000006.ckpt"))
    fit(rest)
    assert rest == whole[12:], (whole, rest)


@rule
def without_an_agent_anything_may_be_attached():
    other = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    for _ in range(2):
        run = ckptd.attach(nn.Linear(2, 2), [optimizer, object()], extra={"words": {1, 2}})
    for _ in run.epochs(1):
        for _ in zip(run.batches(loader()), run.batches(loader())):
            optimizer.step()
            run.step(tokens=3.0)
    run.save()


@rule
def what_a_rank_starts_ends_at_a_sigterm_and_the_rank_does_not():
    _ranks.outlive_the_launcher()
    os.kill(os.getpid(), signal.SIGTERM)
    program = subprocess.Popen(["sleep", "60"])
    program.terminate()
    fork = multiprocessing.get_context("fork")
    begun = fork.Event()
    forked = fork.Process(target=lambda: (begun.set(), time.sleep(60)))
    forked.start()
    assert begun.wait(SOON_S)
    forked.terminate()
    forked.join(SOON_S)
    assert (program.wait(SOON_S), forked.exitcode) == (-signal.SIGTERM, -signal.SIGTERM)


def holds(name):
    """Whether a rule does, in a process and a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            os.chdir(folder)
            faulthandler.dump_traceback_later(PATIENCE_S, exit=True)
            status = 1
            try:
                RULES[name]()
                status = HOLDS
            except BaseException:  # noqa: BLE001 - whatever it is, it is printed
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stderr.flush()
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == HOLDS


def main():
    torch.set_num_threads(1)
    # An optimiser imports it, which takes a second: once here, and not once in each fork.
    importlib.import_module("torch._dynamo")
    chosen = sys.argv[1:] or list(RULES)
    broken = [name for name in chosen if not holds(name)]
    for name in broken:
        print("broken:", name.replace("_", " "))
    print(f"{len(chosen) - len(broken)} of {len(chosen)} rules hold")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
