"""`bpkit watch` finds the models of a script: whole, in parts, several, compiled, one after the other."""

from __future__ import annotations

import pytest
import torch

from tests.commands.scripts import LOOP, PLAIN, names


def test_gan_is_two_models_with_their_losses(watched, losses, tmp_path):
    watching = watched(
        """
class Generator(nn.Sequential): ...
class Discriminator(nn.Sequential): ...
G, D = Generator(mlp(2, 8, 4)), Discriminator(mlp(4, 8, 1))
optG, optD = torch.optim.Adam(G.parameters()), torch.optim.Adam(D.parameters())
bce = nn.functional.binary_cross_entropy_with_logits
expected = open("EXPECTED", "w")
for _ in range(8):
    D.zero_grad()
    real = bce(D(x), torch.ones(64, 1))
    real.backward()
    fake = G(torch.randn(64, 2))
    made = bce(D(fake.detach()), torch.zeros(64, 1))
    made.backward()
    optD.step()
    G.zero_grad()
    fooled = bce(D(fake), torch.ones(64, 1))
    fooled.backward()
    optG.step()
    print((real + made).item(), fooled.item(), file=expected)
expected.close()
""".replace("EXPECTED", str(tmp_path / "expected")),
        logs=True,
    )
    assert names(watching) == [("Discriminator", 8), ("Generator", 8)]
    assert [each.logdir for each in watching.watched] == [
        tmp_path / "logs" / name for name in ("Discriminator", "Generator")
    ]
    assert all(any(each.logdir.iterdir()) for each in watching.watched)
    expected = [float(each) for each in (tmp_path / "expected").read_text().split()]
    assert [value for _, value in losses.given] == pytest.approx(expected, rel=1e-6)


def test_a_model_of_which_only_parts_are_called(watched):
    watching = watched(
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.classifier = mlp(4, 8, 8), nn.Linear(8, 1)
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(6):
    optimizer.zero_grad()
    mse(model.classifier(model.features(x)), y).backward()
    optimizer.step()
"""
    )
    assert names(watching) == [("Net", 6)]


def test_parts_that_no_module_holds_together_are_one_group(watched):
    watching = watched(
        """
encoder, decoder = mlp(4, 8), mlp(8, 1)
optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.1)
for _ in range(6):
    optimizer.zero_grad()
    mse(decoder(encoder(x)), y).backward()
    optimizer.step()
"""
    )
    assert [each.steps for each in watching.watched] == [6]


def test_a_part_that_is_called_first_gives_way_to_the_whole(watched):
    watching = watched(
        PLAIN.replace("mlp(4, 8, 1)", "nn.Sequential(mlp(4, 8), mlp(8, 1))")
        + """
for step in range(8):
    optimizer.zero_grad()
    out = model(x) if step else model[0](x)[:, :1]
    mse(out, y).backward()
    optimizer.step()
assert True
"""
    )
    assert names(watching) == [("model", 8)]


def test_models_trained_one_after_the_other_each_have_a_verdict(watched, losses):
    watching = watched(
        """
def fit():
    model = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        mse(model(x), y).backward()
        optimizer.step()
for _ in range(3):
    fit()
"""
    )
    assert [each.name for each in watching.watched] == ["model", "model-2", "model-3"]
    assert [each.steps for each in watching.watched] == [30, 30, 30]


def test_a_second_optimizer_that_takes_the_model_over(watched):
    watching = watched(
        PLAIN
        + LOOP
        + "tuning = torch.optim.Adam(model.parameters())"
        + LOOP.replace("12", "40").replace("optimizer", "tuning")
    )
    assert [each.name for each in watching.watched] == ["model"]


def test_two_optimizers_of_one_model_are_one_watch(watched):
    watching = watched(
        PLAIN.replace("model.parameters()", "model[0].parameters()")
        + "other = torch.optim.Adam(model[2].parameters())"
        + LOOP.replace("optimizer.step()", "optimizer.step(); other.step()").replace("12", "50")
    )
    assert names(watching) == [("model", 50)]


@pytest.mark.parametrize(
    ("compiled", "times"),
    [
        ("model = torch.compile(net, backend=counter)", 1),
        ("model = net; net.compile(backend=counter)", 2),  # with the hook that looks for calls, and without
    ],
)
def test_a_compiled_model_is_found(watched, capsys, compiled, times):
    watching = watched(
        "from torch._dynamo.testing import CompileCounter\ncounter = CompileCounter()\nnet = mlp(4, 8, 1)\n"
        + compiled
        + "\noptimizer = torch.optim.SGD(net.parameters(), lr=0.1)"
        + LOOP
        + "print(counter.frame_count)"
    )
    torch._dynamo.reset()
    assert [each.steps for each in watching.watched] == [12]
    assert int(capsys.readouterr().out) <= times


def test_a_teacher_and_a_frozen_backbone_are_no_models(watched):
    watching = watched(
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = mlp(4, 8).requires_grad_(False), nn.Linear(8, 1)
    def forward(self, x):
        return self.head(self.backbone(x))
model, teacher = Net(), mlp(4, 8, 1)
optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
for _ in range(30):
    optimizer.zero_grad()
    mse(model(x), teacher(x).detach()).backward()
    optimizer.step()
"""
    )
    assert names(watching) == [("Net", 30)]
