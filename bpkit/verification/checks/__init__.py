"""Every check, in the order they run: the cheapest that says most comes first."""

from bpkit.verification.check import Check
from bpkit.verification.checks import (
    angle,
    autocast,
    batched,
    checkpoint,
    compile,
    func,
    gradcheck,
    gradgradcheck,
    layouts,
    memory,
    parity,
    precision,
    purity,
    raw,
    repeat,
    steps,
    subsets,
    unmutated,
    vmap,
)

CHECKS: tuple[Check, ...] = tuple(
    module.CHECK
    for module in (
        parity,
        gradcheck,
        gradgradcheck,
        batched,
        raw,
        subsets,
        layouts,
        unmutated,
        repeat,
        purity,
        memory,
        precision,
        autocast,
        vmap,
        func,
        checkpoint,
        compile,
        steps,
        angle,
    )
)
