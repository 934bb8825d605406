"""The Trainer: what it learns, keeps, resumes and refuses."""

import signal

import pytest
import torch
from torch import nn

import bpkit
from bpkit.core.errors import BpkitError
from bpkit.data import digits


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))


def data(count=96):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 4, generator=generator)
    return inputs, inputs[:, :3].argmax(1)


def trainer(**settings):
    settings = {"progress": False, "device": "cpu", "seed": 0, **settings}
    return bpkit.Trainer(network(), **settings)


def test_learns_and_logs(tmp_path):
    run = trainer(logdir=tmp_path, optimizer=("adamw", {"lr": 0.02}), regularizers=["l2"], clip=1.0)
    run.fit(data(), data(), epochs=20)
    assert run.evaluate(data())["accuracy"] > 0.9
    assert {each.name for each in tmp_path.glob("*.pt")} == {"last.pt", "best.pt"}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"loss/train", "loss/validation", "accuracy/validation", "learning_rate"} <= tags
    assert any(tag.startswith("gradient_norm/") for tag in tags)


@pytest.mark.parametrize("at", [1, 4, 7])
def test_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path, at):
    whole = trainer(logdir=tmp_path / "whole", schedule="cosine").fit(data(), steps=9)
    first = trainer(
        logdir=tmp_path / "parts", schedule=lambda o: torch.optim.lr_scheduler.LambdaLR(o, _cosine)
    )
    first.fit(data(), steps=at)
    second = trainer(logdir=tmp_path / "parts", schedule="cosine", seed=5).fit(data(), steps=9, resume=True)
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def _cosine(step):
    import math

    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / 9)))


def test_events_come_in_the_documented_order():
    seen = []

    class Listener:
        @bpkit.hookimpl
        def bpkit_fit_start(self):
            seen.append("fit_start")

        @bpkit.hookimpl
        def bpkit_batch(self, inputs):
            seen.append("batch")

        @bpkit.hookimpl
        def bpkit_after_forward(self, loss):
            seen.append("after_forward")

        @bpkit.hookimpl
        def bpkit_after_backward(self, trainer):
            assert all(each.grad is not None for each in trainer.model.parameters())
            seen.append("after_backward")

        @bpkit.hookimpl
        def bpkit_before_step(self):
            seen.append("before_step")

        @bpkit.hookimpl
        def bpkit_after_step(self, trainer):
            assert trainer.step == 1
            seen.append("after_step")

        @bpkit.hookimpl
        def bpkit_fit_end(self):
            seen.append("fit_end")

    trainer(plugins=[Listener()]).fit(data(64), steps=1)
    order = ["fit_start", "batch", "after_forward", "after_backward", "before_step", "after_step", "fit_end"]
    assert seen == order


@pytest.mark.cpu
def test_ctrl_c_keeps_the_last_checkpoint(tmp_path):
    class Interrupting:
        @bpkit.hookimpl
        def bpkit_after_step(self, trainer):
            if trainer.step == 3:
                signal.raise_signal(signal.SIGINT)

    run = trainer(logdir=tmp_path, plugins=[Interrupting()]).fit(data(), epochs=50)
    assert run.interrupted
    assert torch.load(tmp_path / "last.pt", weights_only=True)["progress"]["step"] == 3


class Nonfinite(nn.Module):
    def forward(self, input):
        return input * float("nan")


def wrong(key, value):
    return lambda: trainer(**{key: value})


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (wrong("loss", "cross_entrpy"), "did you mean 'cross_entropy'"),
        (wrong("optimizer", "adamww"), "did you mean 'adamw'"),
        (wrong("optimizer", ("sgd", {"lrr": 1})), "lrr"),
        (wrong("regularizers", ["l3"]), "unknown regularizer 'l3'"),
        (wrong("metrics", ["acuracy"]), "did you mean 'accuracy'"),
        (wrong("precision", "fp64"), "unknown precision 'fp64'"),
        (wrong("precision", "fp16"), "needs an accelerator"),
        (wrong("device", "cuda:77"), "cannot be used here"),
        (wrong("device", "gpu"), "cannot be used here"),
        (wrong("clip", -1.0), "clip must be greater than 0"),
        (wrong("batch_size", 0), "batch_size must be at least 1"),
        (wrong("monitor", "f1"), "monitor 'f1'"),
        (lambda: trainer(schedule="cosin").fit(data(), steps=1), "did you mean 'cosine'"),
        (lambda: trainer(diagnostics=["vanshing"]).fit(data(), steps=1), "did you mean 'vanishing'"),
        (lambda: trainer().fit(data(0), steps=1), "training data is empty"),
        (lambda: trainer().fit(3, steps=1), "training data must be"),
        (lambda: trainer().fit((torch.ones(3, 4), torch.ones(2)), steps=1), "3 inputs but 2 targets"),
        (lambda: trainer().fit(data()), "give epochs or steps"),
        (lambda: trainer().fit(data(), epochs=1, resume=True), "needs a logdir"),
        (lambda: trainer().fit((torch.ones(8, 5), data(8)[1]), steps=1), r"layer 0, Linear\(in_features=4"),
        (lambda: trainer().fit((data(8)[0].double(), data(8)[1]), steps=1), "float64"),
        (lambda: trainer().fit((data(8)[0], data(8)[1] + 7), steps=1), "targets run from 7"),
        (
            lambda: bpkit.Trainer(
                nn.Sequential(nn.Linear(4, 3), Nonfinite()), device="cpu", progress=False
            ).fit(data(), steps=1),
            "loss is nan",
        ),
        (lambda: bpkit.Trainer(nn.ReLU(), device="cpu"), "nothing to train"),
    ],
)
def test_a_mistake_is_one_clear_line(attempt, message):
    with pytest.raises(BpkitError, match=message) as raised:
        attempt()
    assert "\n" not in str(raised.value)


def test_a_run_is_not_overwritten_and_damage_is_told(tmp_path):
    trainer(logdir=tmp_path).fit(data(), epochs=1)
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(BpkitError, match="already holds a run"):
        trainer(logdir=tmp_path).fit(data(), epochs=1)
    assert (tmp_path / "last.pt").read_bytes() == before
    (tmp_path / "last.pt").write_bytes(before[: len(before) // 2])
    with pytest.raises(BpkitError, match="damaged or something else"):
        trainer(logdir=tmp_path).fit(data(), epochs=2, resume=True)
    assert (tmp_path / "last.pt").read_bytes() == before[: len(before) // 2]
    with pytest.raises(BpkitError, match="nothing to resume"):
        trainer(logdir=tmp_path / "new").fit(data(), epochs=2, resume=True)


def test_digits_are_split_for_ever():
    split = digits()
    assert (len(split.train), len(split.test)) == (1437, 360)
    assert split.test.tensors[1].bincount().tolist() == [36] * 10
    images = split.train.tensors[0]
    assert images.shape == (1437, 1, 8, 8)
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    assert int(split.test.tensors[1][:20].sum()) == EXPECTED


EXPECTED = 90
