"""`python -m tests.mutants [--markdown]`: the mutants under verify, gradcheck, gradgradcheck and opcheck."""

from __future__ import annotations

import argparse
import itertools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function, gradcheck, gradgradcheck

import bpkit
from bpkit.core.spec import Spec

from . import MUTANTS, Mutant
from .mutant import name_of

CAUGHT, PASSED, NOT_APPLICABLE = "caught", "–", "n/a"
COLUMNS = ("verify", "gradcheck", "gradgradcheck", "opcheck")
_NUMBERS = itertools.count()

Rows = list[tuple[list[Mutant], tuple[str, ...]]]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--markdown", action="store_true", help="a table that can stand in a README")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    defects: dict[int, list[Mutant]] = {}
    for mutant in MUTANTS:  # some are there twice, for two checks or without a reference as well
        defects.setdefault(id(mutant.function), []).append(mutant)
    rows = []
    for number, mutants in enumerate(defects.values(), 1):
        if sys.stderr.isatty():
            print(f"\r{number}/{len(defects)}", end="\r", file=sys.stderr, flush=True)
        rows.append((mutants, _results(mutants)))
    lines = _markdown(rows) if options.markdown else _text(rows)
    print("\n".join([*lines, "", totals([results for _, results in rows])]))
    return int(any(results[0] != CAUGHT for _, results in rows))


def _results(mutants: list[Mutant]) -> tuple[str, ...]:
    return (
        CAUGHT if all(_by_verify(mutant) for mutant in mutants) else PASSED,
        _by_gradcheck(mutants[0], gradcheck),
        _by_gradcheck(mutants[0], gradgradcheck),
        _by_opcheck(mutants[0]),
    )


def _by_verify(mutant: Mutant) -> bool:
    """Whether the check meant for it catches it."""
    report = bpkit.verify(mutant.function, *mutant.inputs, reference=mutant.reference, only=mutant.check)
    return [result.status for result in report.results] == [mutant.status]


def _by_gradcheck(mutant: Mutant, check: Callable[..., bool]) -> str:
    """Torch's check with its defaults, on the same inputs in float64, under one seed so that masks stay."""
    if isinstance(mutant.function, Spec | nn.Module):  # broken as an object, not in its gradient
        return NOT_APPLICABLE
    run = _callable(mutant.function)

    def seeded(*values: Any) -> Any:
        torch.manual_seed(0)
        return run(*values)

    try:
        check(seeded, _leaves(mutant.inputs))
    except Exception:  # a gradcheck that raises anything has told its user
        return CAUGHT
    return PASSED


def _by_opcheck(mutant: Mutant) -> str:
    operator = _operator(mutant.function, mutant.inputs)
    if operator is None:
        return NOT_APPLICABLE
    try:
        torch.library.opcheck(operator, _leaves(mutant.inputs))
    except Exception:
        return CAUGHT
    return PASSED


def _callable(target: Any) -> Callable[..., Any]:
    if isinstance(target, type) and issubclass(target, Function):
        return target.apply
    return target


def _leaves(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        value.detach().clone().requires_grad_(value.is_floating_point())
        if isinstance(value, Tensor)
        else value
        for value in inputs
    )


def _operator(target: Any, inputs: tuple[Any, ...]) -> Any:
    """An operator of `torch.library` with a Function's forward and backward; None where there is no such."""
    if isinstance(target, torch._library.custom_ops.CustomOpDef):
        return target
    is_function = isinstance(target, type) and issubclass(target, Function)
    if not is_function or target.setup_context is Function.setup_context:
        return None
    if not all(isinstance(value, Tensor) for value in inputs):
        return None
    outputs = target.forward(*(value.clone() for value in inputs))
    arguments = ", ".join(f"Tensor x{i}" for i in range(len(inputs)))
    returns = "Tensor" if isinstance(outputs, Tensor) else f"({', '.join(['Tensor'] * len(outputs))})"
    operator = torch.library.custom_op(
        f"mutants_table::op{next(_NUMBERS)}",
        lambda *values: target.forward(*values),
        mutates_args=(),
        schema=f"({arguments}) -> {returns}",
    )
    operator.register_fake(lambda *values: target.forward(*values))
    operator.register_autograd(
        lambda ctx, *grads: target.backward(ctx, *grads),
        setup_context=lambda ctx, inputs, output: target.setup_context(ctx, inputs, output),
    )
    return operator


def _cells(mutants: list[Mutant], results: tuple[str, ...]) -> tuple[str, ...]:
    checks = dict.fromkeys(f"{each.check}{' (warns)' * (each.status == 'warn')}" for each in mutants)
    found = ", ".join(checks) if results[0] == CAUGHT else "MISSED"
    return (name_of(mutants[0].function), found, *results[1:], mutants[0].story)


def _text(rows: Rows) -> list[str]:
    table = [("mutant", *COLUMNS, "drawn from"), *(_cells(*row) for row in rows)]
    widths = [max(len(cells[i]) for cells in table) for i in range(len(table[0]) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)), cells[-1]])
        for cells in table
    ]


def _markdown(rows: Rows) -> list[str]:
    head = [
        "| mutant | verify's check | gradcheck | gradgradcheck | opcheck | drawn from |",
        "|---" * 6 + "|",
    ]
    return [*head, *(f"| `{name}` | {' | '.join(rest)} |" for name, *rest in (_cells(*row) for row in rows))]


def totals(results: list[tuple[str, ...]]) -> str:
    """One sentence: of how many mutants that it can be run on each check caught how many."""
    parts = []
    for name, column in zip(COLUMNS, zip(*results, strict=True), strict=True):
        tried = [each for each in column if each != NOT_APPLICABLE]
        count = str(tried.count(CAUGHT)) + f" of the {len(tried)} it can be run on" * (
            len(tried) < len(results)
        )
        parts.append(f"`{name}` catches {count}")
    own, *torchs = parts
    return f"Of {len(results)} mutants, {own}, each by the check meant for it; {', '.join(torchs)}."


if __name__ == "__main__":
    sys.exit(main())
