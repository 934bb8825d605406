"""`bpkit watch` on scripts that know nothing of bpkit: they run as alone, and their losses are found."""

from __future__ import annotations

import pytest
import torch
from torch.amp.grad_scaler import GradScaler
from torch.nn.modules import module
from torch.optim import optimizer

from tests.commands.scripts import HEAD, LOOP, PLAIN, names


def test_a_plain_loop(watched, losses, capsys):
    watching = watched(PLAIN + LOOP + "print(*[loss.item()])")
    assert names(watching) == [("model", 12)]
    assert watching.watched[0].summary == "healthy: nothing found in 12 steps"
    assert [step for step, _ in losses.given] == list(range(1, 13))
    assert losses.given[-1][1] == pytest.approx(float(capsys.readouterr().out), rel=1e-6)


def test_the_numbers_of_the_training_stay_as_they_are(watched, capsys):
    text = HEAD + PLAIN + LOOP + "print(sum(p.double().sum().item() for p in model.parameters()).hex())"
    exec(compile(text, "train.py", "exec"), {"__name__": "__main__"})
    alone = capsys.readouterr().out
    watched(PLAIN + LOOP + "print(sum(p.double().sum().item() for p in model.parameters()).hex())")
    assert capsys.readouterr().out == alone


def test_what_is_wrong_is_found(watched):
    watching = watched(
        "model = mlp(4, *[16] * 12, 1, act=nn.Sigmoid)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)" + LOOP.replace("12", "60")
    )
    assert "vanishing" in [each.kind for each in watching.watched[0].findings]


CLASSES = """
import argparse
class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = mlp(4, width, width)
        self.head = nn.Linear(width, 1)
        self.unused = nn.Linear(2, 2).requires_grad_(False)
    def forward(self, x):
        return self.head(self.body(x).tanh())
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int)
    parser.add_argument("data")
    args = parser.parse_args()
    assert args.data == "-x" and sys.argv[0].endswith("train.py") and __name__ == "__main__"
    model = Net(args.width)
    with torch.no_grad():
        model(x)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    criterion = nn.MSELoss()
    for step in range(12):
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
if __name__ == "__main__":
    main()
"""


def test_a_class_with_a_main_and_arguments(watched):
    assert names(watched(CLASSES, "--width", "8", "--", "-x")) == [("Net", 12)]


def test_workers_that_are_forked_watch_nothing(watched):
    watching = watched(
        PLAIN
        + """
from torch.utils.data import DataLoader, TensorDataset
for inputs, target in DataLoader(TensorDataset(x, y), batch_size=16, num_workers=2):
    optimizer.zero_grad()
    mse(model(inputs), target).backward()
    optimizer.step()
"""
    )
    assert names(watching) == [("model", 4)]


def test_accumulated_losses_are_added_up(watched, losses, capsys):
    watched(
        PLAIN
        + """
for _ in range(5):
    optimizer.zero_grad()
    whole = mse(model(x), y)
    for part in range(4):
        (mse(model(x[part::4]), y[part::4]) / 4).backward()
    optimizer.step()
    print(whole.item())
"""
    )
    whole = [float(each) for each in capsys.readouterr().out.split()]
    assert [step for step, _ in losses.given] == [1, 2, 3, 4, 5]
    assert [value for _, value in losses.given] == pytest.approx(whole, rel=1e-6)


def test_losses_are_without_the_scale_of_mixed_precision(watched, losses, capsys):
    watched(
        PLAIN
        + """
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
for step in range(6):
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = mse(model(x).float(), y)
    scaled = scaler.scale(loss)
    (scaled if step < 3 else scaled / 2).backward()
    scaler.step(optimizer)
    scaler.update()
    print((loss if step < 3 else loss / 2).item())
"""
    )
    expected = [float(each) for each in capsys.readouterr().out.split()]
    assert [value for _, value in losses.given] == pytest.approx(expected, rel=1e-6)


def test_lbfgs_runs_the_model_inside_its_step(watched, losses, capsys):
    watching = watched(
        """
model = mlp(4, 8, 1)
optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
for _ in range(5):
    def closure():
        global loss
        optimizer.zero_grad()
        loss = mse(model(x), y)
        loss.backward()
        return loss
    optimizer.step(closure)
    print(loss.item())
"""
    )
    assert names(watching) == [("model", 5)]
    expected = [float(each) for each in capsys.readouterr().out.split()]
    assert [value for _, value in losses.given][-3:] == pytest.approx(expected[-3:], rel=1e-6)


def test_everything_is_put_back_also_after_an_exception(watched, capsys):
    before = (torch.autograd.backward, GradScaler.scale)
    watching = watched(PLAIN + LOOP + "def fail():\n    raise ValueError('mine')\nfail()", code=1)
    assert (torch.autograd.backward, GradScaler.scale) == before
    assert not module._global_forward_pre_hooks
    assert not optimizer._global_optimizer_pre_hooks
    assert not optimizer._global_optimizer_post_hooks
    assert names(watching) == [("model", 12)]
    trace = capsys.readouterr().err
    assert trace.startswith("Traceback (most recent call last):\n  File ")
    assert "ValueError: mine" in trace
    assert "runpy" not in trace
    assert "bpkit" not in trace


def test_calls_of_modules_are_noted_no_longer_than_needed(watched):
    watched(PLAIN + LOOP + "from torch.nn.modules import module\nassert not module._global_forward_pre_hooks")
