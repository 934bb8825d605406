"""The Trainer: what it learns, keeps, resumes and refuses."""

import random
import signal
import sys

import numpy as np
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
    assert "gradients/total after clipping" in tags


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


class Augmented(torch.utils.data.Dataset):
    """Draws from every generator there is."""

    def __len__(self):
        return 50

    def __getitem__(self, index):
        inputs, target = data()
        drawn = torch.rand(()) + random.random() + float(np.random.rand())
        return inputs[index] + 0.1 * drawn, target[index]


class Streamed(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([(each, target) for each, target in zip(*data(), strict=True)])


def loader(**settings):
    return torch.utils.data.DataLoader(Augmented(), batch_size=8, **settings)


SOURCES = {
    "tensors": data,
    "dataset": Augmented,
    "streamed": Streamed,
    "loader": lambda: loader(shuffle=True),
    "loader with a generator": lambda: loader(shuffle=True, generator=torch.Generator().manual_seed(5)),
    "list": lambda: list(zip(*(each.split(8) for each in data()), strict=True)),
}


class InterruptIn:
    """Ctrl-C in the first batch of step number `step`, of which more are to come."""

    def __init__(self, step):
        self.step = step

    @bpkit.hookimpl
    def bpkit_after_forward(self, trainer):
        if (trainer.step + 1, trainer.position.batch % 3) == (self.step, 0):
            signal.raise_signal(signal.SIGINT)


def trained(source, directory, *, plugins=(), resume=False, seed=0):
    random.seed(seed)
    np.random.seed(seed)
    run = trainer(batch_size=8, accumulate=3, plugins=plugins, logdir=directory, seed=seed)
    return run.fit(SOURCES[source](), data(), epochs=3, resume=resume)


@pytest.mark.cpu
@pytest.mark.parametrize("step", [2, 5])
@pytest.mark.parametrize("source", SOURCES)
def test_ctrl_c_in_an_epoch_and_going_on_equals_an_unbroken_run(source, step, tmp_path):
    whole = trained(source, None)
    first = trained(source, tmp_path, plugins=[InterruptIn(step)])
    assert (first.interrupted, first.step) == (True, step)
    second = trained(source, tmp_path, resume=True, seed=7)
    assert second.position == whole.position
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


SCHEDULERS = torch.optim.lr_scheduler
SCHEDULES = {
    "warm-up": ("linear", {"warmup": 3}),
    "one cycle": lambda optimizer: SCHEDULERS.OneCycleLR(optimizer, 0.1, total_steps=20),
    "sequential": lambda optimizer: SCHEDULERS.SequentialLR(
        optimizer, [SCHEDULERS.LinearLR(optimizer), SCHEDULERS.CosineAnnealingLR(optimizer, 9)], [3]
    ),
    "milestones": lambda optimizer: SCHEDULERS.MultiStepLR(optimizer, [2, 5]),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_every_schedule_goes_on_where_it_was(schedule, tmp_path):
    whole = trainer(schedule=schedule).fit(data(), steps=9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "bpkit.train.batches.Batches.steps", lambda *_: 9
        )  # the length that the rate decays over
        trainer(schedule=schedule, logdir=tmp_path).fit(data(), steps=4)
    second = trainer(schedule=schedule, logdir=tmp_path).fit(data(), steps=9, resume=True)
    assert whole.optimizer.param_groups[0]["lr"] == second.optimizer.param_groups[0]["lr"]
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("settings", "length", "steps", "epochs", "evaluated"),
    [
        ({"batch_size": 96}, {"epochs": 3}, 3, 3, 3),
        ({"batch_size": 10**30}, {"epochs": 2}, 2, 2, 2),
        ({"batch_size": 32, "accumulate": 2}, {"epochs": 2}, 4, 2, 2),
        ({"batch_size": 32}, {"steps": 3}, 3, 1, 1),
        ({"batch_size": 32}, {"steps": 4}, 4, 1, 2),
    ],
)
@pytest.mark.parametrize("sized", [True, False])
def test_how_far_a_run_goes(settings, length, steps, epochs, evaluated, sized):
    class Unsized:
        def __iter__(self):
            inputs, target = data()
            size = min(settings["batch_size"], 96)
            return iter([(inputs[i : i + size], target[i : i + size]) for i in range(0, 96, size)])

    run = trainer(**settings).fit(data() if sized else Unsized(), data(), **length)
    ended = (
        epochs if sized or "epochs" in length or steps == 4 else 0
    )  # who does not know its end is not asked on
    assert (run.step, run.epoch, len(run.history)) == (steps, ended, evaluated)


def test_evaluation_puts_back_the_mode_of_every_module():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    model[1].eval()
    run = bpkit.Trainer(model, device="cpu", progress=False)
    run.evaluate(data())
    with pytest.raises(BpkitError):
        run.evaluate((torch.ones(3, 9), torch.ones(3).long()))
    assert [each.training for each in model] == [True, False, True]


def test_a_diagnostic_that_a_plugin_of_this_trainer_brings_is_watched_by_name():
    class Counting(bpkit.diagnostics.Diagnostic):
        seen = 0

        def observe(self, sample):
            Counting.seen += 1
            return ()

    class Bringing:
        @bpkit.hookimpl
        def bpkit_diagnostics(self):
            return [bpkit.core.spec.DiagnosticSpec(name="counting", diagnostic=Counting, kinds=())]

    trainer(plugins=[Bringing()], diagnostics=["counting"]).fit(data(), steps=2)
    assert Counting.seen == 2


def test_a_long_epoch_is_saved_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr("bpkit.train.checkpoint.LAST_SECONDS", -1.0)
    monkeypatch.setattr("bpkit.train.checkpoint.LAST_SHARE", float("inf"))
    saved = []

    class Listener:
        @bpkit.hookimpl
        def bpkit_checkpoint(self, trainer, path):
            saved.append((trainer.step, path.name))

    trainer(batch_size=32, logdir=tmp_path, plugins=[Listener()]).fit(data(), steps=2)
    assert saved[:2] == [(1, "last.pt"), (2, "last.pt")]


class Listens:
    """A plugin whose hook does what it is told."""

    def __init__(self, action):
        self.action = action

    @bpkit.hookimpl
    def bpkit_after_step(self):
        self.action()


def adam(parameters):
    return torch.optim.Adam(parameters)


EMPTY = torch.utils.data.DataLoader(type("Nothing", (Streamed,), {"__iter__": lambda self: iter(())})())


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: bpkit.Trainer(nn.Linear), "model must be a torch.nn.Module object"),
        (lambda: bpkit.Trainer("net"), "model must be a torch.nn.Module object"),
        *(
            (wrong(each, "name"), rf"{each} must be a list, such as \['name'\]")
            for each in ("regularizers", "metrics", "diagnostics", "plugins")
        ),
        (wrong("plugins", 3), "plugins must be a list"),
        (wrong("diagnostics", ["vanshing"]), "did you mean 'vanishing'"),
        (wrong("metrics", [3]), "a metric must be"),
        *((wrong(each, 1.5), f"{each} must be a whole number") for each in ("accumulate", "batch_size")),
        (wrong("log_every", "a"), "log_every must be a whole number"),
        (wrong("clip", "1"), "clip must be greater than 0"),
        *((wrong("seed", each), "seed must be a whole number") for each in ("a", 1.5, 2**70)),
        (wrong("logdir", 3), "logdir must be a path"),
        (wrong("logdir", "a" * 5000), "logdir cannot be"),
        *((wrong("device", each), "cannot be used here") for each in ("", "meta", "hpu", "mps", "xla", None)),
        *((wrong("precision", each), "unknown precision") for each in (None, ["fp32"], torch.bfloat16)),
        (wrong("loss", nn.MSELoss), r"MSELoss is a class; give an object, such as MSELoss\(\)"),
        (lambda: trainer(loss=nn.CrossEntropyLoss(reduction="none")).fit(data(), steps=1), "one number"),
        (lambda: trainer(loss=lambda output, target: 3.0).fit(data(), steps=1), "one number"),
        (
            lambda: trainer(loss=lambda output, target: output.detach().sum()).fit(data(), steps=1),
            "no parameter",
        ),
        (wrong("optimizer", lambda parameters: 3), "the factory must give"),
        (
            wrong("optimizer", lambda parameters: torch.optim.SGD(parameters, -1)),
            "the factory raised ValueError",
        ),
        (wrong("optimizer", torch.optim.LBFGS), "LBFGS calls the model several times"),
        (wrong("optimizer", adam(nn.Linear(2, 2).parameters())), "holds no parameter of the model"),
        (
            wrong("optimizer", ("adamw", {"lrr": 1})),
            "unknown setting of optimizer 'adamw' 'lrr': did you mean 'lr'",
        ),
        (
            lambda: trainer(schedule=SCHEDULERS.ReduceLROnPlateau).fit(data(), steps=1),
            "goes by the step's number",
        ),
        (lambda: trainer(schedule=lambda optimizer: 3).fit(data(), steps=1), "goes by the step's number"),
        (
            lambda: trainer(schedule=SCHEDULERS.StepLR(adam(nn.Linear(2, 2).parameters()), 1)).fit(
                data(), steps=1
            ),
            "of another optimizer",
        ),
        (
            lambda: trainer(schedule=("cosine", {"warmup": -1})).fit(data(), steps=1),
            "warmup must be a number of",
        ),
        (lambda: trainer().fit(data(), steps="3"), "steps must be a whole number"),
        (lambda: trainer().fit(data(), epochs=1.5), "epochs must be a whole number"),
        (lambda: trainer().fit(iter(()), steps=1), "training data is empty"),
        (
            lambda: trainer().fit(iter([data()]), steps=2),
            "training data is empty.*an iterator can be gone over once",
        ),
        (lambda: trainer().fit(iter([data()]), epochs=2), "an iterator can be gone over once"),
        (lambda: trainer().fit(data(), iter([data()]), epochs=2), "validation data: an iterator"),
        (lambda: trainer().fit(EMPTY, epochs=1), "training data is empty"),
        (lambda: trainer().evaluate(iter(())), "data is empty"),
        (lambda: trainer().evaluate(EMPTY), "data is empty"),
        (
            lambda: trainer().fit(torch.utils.data.TensorDataset(*data(), data()[1]), steps=1),
            "not of 3 tensors",
        ),
        (lambda: trainer().fit((torch.tensor(1.0), torch.tensor(1)), steps=1), "need a first axis"),
        (lambda: trainer().fit([{"x": 1}], steps=1), "must give .inputs, target., not dict"),
        (
            lambda: trainer().fit((1 / 0 for _ in range(3)), steps=1),
            "after 0 batches: it raised ZeroDivisionError",
        ),
        (lambda: trainer(metrics=["top_5_accuracy"]).evaluate(data()), "metric top_5_accuracy cannot take"),
        (lambda: trainer(metrics=[lambda o, t: o.mean(1)]).evaluate(data()), "metric <lambda> cannot take"),
        (
            lambda: trainer(plugins=[Listens(sys.exit)]).fit(data(), steps=1),
            "plugin Listens: .* raised SystemExit",
        ),
    ],
)
def test_any_other_mistake_is_one_clear_line_too(attempt, message):
    with pytest.raises(BpkitError, match=message) as raised:
        attempt()
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"optimizer": "sgd"}, "its optimizer is AdamW, this run's SGD"),
        ({"schedule": None}, "its schedule is LambdaLR, this run's none"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(settings, reason, tmp_path):
    trainer(logdir=tmp_path, schedule="cosine").fit(data(), steps=1)
    with pytest.raises(BpkitError, match=reason):
        trainer(logdir=tmp_path, **{"schedule": "cosine", **settings}).fit(data(), steps=2, resume=True)


def test_what_is_not_a_number_is_never_the_best():
    from bpkit.train.metrics import is_better

    assert not is_better("loss", float("nan"), None)
    assert not is_better("accuracy", float("nan"), 0.5)
    assert is_better("loss", 1.0, None)


def test_accuracy_takes_probabilities_for_targets():
    inputs, target = data()
    hot = nn.functional.one_hot(target, 3).float()
    assert trainer().evaluate((inputs, hot))["accuracy"] == trainer().evaluate((inputs, target))["accuracy"]
