"""Proof: every way in which a custom backward is known to go wrong, tried.

One check, one file, under `checks`; `CHECKS` there lists them in the order they run.
"""

from bpkit.verification.check import Check as Check
from bpkit.verification.checks import CHECKS as CHECKS
from bpkit.verification.report import (
    CheckResult as CheckResult,
    Report as Report,
    VerificationError as VerificationError,
)
from bpkit.verification.run import verify as verify
