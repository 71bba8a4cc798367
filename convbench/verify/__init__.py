"""Verification: right before fast. `Verifier` is what timing goes through."""

from convbench.verify.compare import ErrorFigures
from convbench.verify.verdict import ALL_CHECKS, CHECKS, Verdict
from convbench.verify.verifier import Verifier

__all__ = ["ALL_CHECKS", "CHECKS", "ErrorFigures", "Verdict", "Verifier"]
