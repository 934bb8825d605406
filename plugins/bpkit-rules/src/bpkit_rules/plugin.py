"""What bpkit-rules brings, through bpkit's hooks."""

from __future__ import annotations

from collections.abc import Iterable

from bpkit import DiagnosticSpec, LayerSpec, RuleSpec, hookimpl

from bpkit_rules import direct, feedback, guided, step
from bpkit_rules.angle import FeedbackAngles


@hookimpl
def bpkit_rules() -> Iterable[RuleSpec]:
    """The specs of every page."""
    return [*feedback.RULES, *direct.RULES, *step.RULES, *guided.RULES]


@hookimpl
def bpkit_layers() -> Iterable[LayerSpec]:
    """The step that two of the rules are for."""
    return step.LAYERS


@hookimpl
def bpkit_diagnostics() -> Iterable[DiagnosticSpec]:
    """The angle of every layer under a rule, in every watch."""
    return [
        DiagnosticSpec(
            name="rule_angle",
            diagnostic=FeedbackAngles,
            kinds=("misaligned",),
            summary="degrees between the error that a rule hands down and the true one",
        )
    ]
