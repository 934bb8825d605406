"""`bpkit demo`: prove, fail, diagnose, mend. Every figure it prints is measured as it runs."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from torch import nn

    from bpkit.train import Trainer

PROVED = (
    "Linear",
    "Sigmoid",
    "ReLU",
    "Conv2d",
    "BatchNorm2d",
    "MaxPool2d",
    "Dropout",
    "Flatten",
    "cross_entropy",
)
DEPTH, WIDTH = 12, 128
NAN_STEP = 87  # not a step that is sampled anyway


@click.command(name="demo")
@click.option("--logdir", type=click.Path(path_type=Path), help="Where the logs go [runs/demo-N].")
def demo(logdir: Path | None) -> None:
    """Prove layers, watch a network fail, and mend it, on real digits."""
    from bpkit.commands.train import free
    from bpkit.core.errors import BpkitError

    start = time.monotonic()
    logging.getLogger("bpkit").setLevel(logging.ERROR)  # verdicts are printed in their place below
    logdir = logdir or free("demo")
    if logdir.exists() and (not logdir.is_dir() or any(logdir.iterdir())):
        raise BpkitError(f"--logdir {logdir} is not an empty directory; name another")
    _prove()
    _catch()
    _deep_sigmoid(logdir)
    _remedy(logdir)
    _convolution(logdir)
    _plain_loop(logdir)
    _nan(logdir)
    _transformer()
    click.echo(f"\nDone in {time.monotonic() - start:.0f} s. To look at the runs:")
    click.echo(f"  tensorboard --logdir {logdir}  # the tab Gradients: layers x steps, and the findings")
    click.echo(f"  bpkit doctor {logdir}  # the findings, from the logs alone")


def _title(number: int, text: str) -> None:
    click.echo(f"\n{number}. {text}\n")


def _prove() -> None:
    import bpkit
    from bpkit.core.errors import BpkitError

    _title(1, "Prove the layers that follow: each hand-written backward, against autograd")
    for name in PROVED:
        start = time.monotonic()
        report = bpkit.verify(name, exclude=["compile"])
        passed = sum(result.status == "pass" for result in report.results)
        click.echo(f"   {name:<14} {passed:>3} checks passed  {time.monotonic() - start:4.1f} s")
        if not report.ok:
            raise BpkitError(f"{name} is not proven: {report.failures[0].name}: {report.failures[0].detail}")


def _catch() -> None:
    import torch
    from torch import Tensor

    import bpkit

    class BlockedSoftmax(torch.autograd.Function):
        """Softmax whose backward sums whole blocks of 16 columns, and forgets the rest."""

        generate_vmap_rule = True

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return torch.softmax(x, -1)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            ctx.save_for_backward(output)

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> Tensor:
            (y,) = ctx.saved_tensors
            columns = max(16, y.shape[-1] // 16 * 16)
            inner = (grad_output * y)[..., :columns].sum(-1, keepdim=True)
            gradient: Tensor = y * (grad_output - inner)
            return gradient

    _title(2, "Catch a broken one: a softmax whose backward is wrong beyond 16 columns, tried on 4 x 6")
    torch.manual_seed(0)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    passed = torch.autograd.gradcheck(BlockedSoftmax.apply, x, raise_exception=False)
    _say(f"torch.autograd.gradcheck: {'passes it' if passed else 'fails it'}")
    report = bpkit.verify(
        BlockedSoftmax, x, reference=lambda x: torch.softmax(x, -1), only=["parity", "gradcheck", "sizes"]
    )
    for result in report.results:
        _say(f"bpkit.verify, {result.name}: {'fails it: ' if result.status == 'fail' else 'passes it'}")
        if result.status == "fail":
            _say(f"   {result.detail}")


def _network(activation: str, init: str) -> nn.Sequential:
    """A deep network as a recipe would describe it."""
    from bpkit.plugins.registry import registry
    from bpkit.train import build
    from bpkit.train.config import Model

    sizes = [64, *[WIDTH] * (DEPTH - 2)]
    hidden = [layer for size in sizes for layer in (["Linear", size, WIDTH], [activation])]
    layers = [["Flatten"], *hidden, ["Linear", WIDTH, 10]]
    return build.model(Model.model_validate({"layers": layers, "init": init}), 0, registry())


def _train(activation: str, init: str, logdir: Path, epochs: int) -> tuple[Trainer, float]:
    """The trainer, and its accuracy on the test digits."""
    import bpkit
    from bpkit.data import digits

    split = digits()
    trainer = bpkit.Trainer(
        _network(activation, init),
        optimizer=("sgd", {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}),
        schedule="cosine",
        clip=1.0,  # of so deep a network a single batch can send the weights away
        batch_size=32,
        seed=0,
        device="cpu",
        logdir=logdir,
        progress=False,
    )
    trainer.fit(split.train, epochs=epochs)
    return trainer, trainer.evaluate(split.test)["accuracy"]


def _deep_sigmoid(logdir: Path) -> None:
    from bpkit.diagnostics import gradient_profile

    _title(3, f"Train a {DEPTH}-layer sigmoid network on 1,437 digits")
    trainer, accuracy = _train("Sigmoid", "default", logdir / "sigmoid", 10)
    _say(f"{trainer.step} steps; accuracy on 360 test digits {accuracy:.1%}: it does not learn. Why?\n")
    if trainer.watcher is not None and trainer.watcher.sample is not None:
        _say(f"{gradient_profile(trainer.watcher.sample)}\n\n{trainer.watcher.summary()}")


def _remedy(logdir: Path) -> None:
    _title(4, f"Take the advice: ReLU and He initialisation, {DEPTH} layers of width {WIDTH}")
    trainer, accuracy = _train("ReLU", "he", logdir / "relu", 30)
    _say(f"{trainer.step} steps; accuracy on 360 test digits {accuracy:.1%}")
    if trainer.watcher is not None:
        _say(trainer.watcher.summary())


def _convolution(logdir: Path) -> None:
    from bpkit.plugins.registry import registry
    from bpkit.train import build
    from bpkit.train.config import parse

    _title(5, "And a convolutional network, from the recipe digits-cnn")
    run = parse(registry().recipes["digits-cnn"].toml, "digits-cnn", ["train.device=cpu"])
    training, validation, test = build.data(run)
    trainer = build.trainer(run, logdir / "cnn", progress=False)
    trainer.fit(training, validation, epochs=run.train.epochs)
    accuracy = trainer.evaluate(test)["accuracy"]
    _say(f"{trainer.step} steps; accuracy on 360 test digits {accuracy:.1%}")


def _plain_loop(logdir: Path) -> None:
    import torch
    from torch import nn

    import bpkit
    from bpkit.data import digits

    _title(6, "The same watch in a loop that knows nothing of bpkit: a plain torch.nn model")
    _say("watcher = bpkit.watch(model, optimizer, logdir=logdir)")
    _say("...the loop, unchanged...")
    _say("print(watcher.summary())\n")
    inputs, target = digits().train.tensors

    def run(title: str, activation: type[nn.Module], he: bool, name: str) -> None:
        torch.manual_seed(0)
        hidden = [layer for _ in range(10) for layer in (nn.Linear(64, 64), activation())]
        model = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, 10))
        for layer in model:
            if he and isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        watcher = bpkit.watch(model, optimizer, logdir=logdir / name)
        for _ in range(150):
            index = torch.randint(len(inputs), (64,))
            loss = nn.functional.cross_entropy(model(inputs[index]), target[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        watcher.close()
        _say(f"{title}: loss {loss.item():.3f} after 150 steps\n{watcher.summary()}")

    run("Sigmoid", nn.Sigmoid, False, "plain-sigmoid")
    click.echo()
    run("ReLU and He initialisation", nn.ReLU, True, "plain-relu")


def _nan(logdir: Path) -> None:
    import torch
    from torch import Tensor, nn

    import bpkit

    class Faulty(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            output = super().forward(input)
            if watcher.step + 1 == NAN_STEP:
                output[0, 0, 0] = torch.nan
            return output

    _title(7, "Put a NaN into one layer of a transformer, between two samples: who made it?")
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(block, 4, enable_nested_tensor=False)
    encoder.get_submodule("layers.2").linear1 = Faulty(32, 64)
    model = nn.Sequential(nn.Linear(4, 32), encoder, nn.Flatten(), nn.Linear(16 * 32, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    watcher = bpkit.watch(model, optimizer, logdir=logdir / "transformer-nan")
    losses = []
    for _ in range(NAN_STEP + 3):
        wave = torch.randint(4, (32, 1))  # four frequencies, to be told apart in noise
        phase = torch.arange(64) / 64 * (2 + wave) + torch.rand(32, 1)
        signal = torch.sin(2 * torch.pi * phase) + 0.3 * torch.randn(32, 64)
        loss = nn.functional.cross_entropy(model(signal.unflatten(1, (16, 4))), wave.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        watcher.loss(loss)
        losses.append(loss.item())
    watcher.close()
    _say(f"step {NAN_STEP}: one NaN in the output of '1.layers.2.linear1'; samples are at every tenth step")
    for step in (1, NAN_STEP - 1, NAN_STEP, NAN_STEP + 1):
        _say(f"loss at step {step:<4} {losses[step - 1]:.3f}")
    _say(f"\n{watcher.summary()}")


def _transformer() -> None:
    import torch
    from torch import nn

    import bpkit
    from bpkit.bench.measure import saved_in

    _title(8, "Swap: a transformer of torch's own, converted in place")
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.1, activation="gelu", batch_first=True)
    model = nn.Sequential(nn.Embedding(1000, 128), nn.TransformerEncoder(layer, 4), nn.Linear(128, 1000))
    tokens = torch.randint(1000, (4, 256))

    def loss() -> torch.Tensor:
        torch.manual_seed(1)  # the same units are dropped
        return nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def gradients() -> torch.Tensor:
        return torch.cat([each.flatten() for each in torch.autograd.grad(loss(), list(model.parameters()))])

    before, true, kept = loss().item(), gradients(), saved_in(model, loss)
    bpkit.convert(model)
    after, own, keeps = loss().item(), gradients(), saved_in(model, loss)
    _say(f"{bpkit.converted(model)}")
    _say(f"loss           {before:.6f} before, {after:.6f} after")
    _say(
        f"gradients      relative error {float((own - true).abs().max() / true.abs().max()):.0e}, in float32"
    )
    _say(f"bytes saved    {kept / 2**20:.1f} MiB before, {keeps / 2**20:.1f} MiB after")
    with bpkit.handwritten():
        _say(f"its graph      {bpkit.coverage(loss())}")


def _say(text: str) -> None:
    """Print under a title, indented."""
    click.echo("\n".join(f"   {line}".rstrip() for line in text.split("\n")))
