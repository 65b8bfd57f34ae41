# SPDX-License-Identifier: AGPL-3.0-only
"""What was tried in a run, told at its end: inputs, faults, requests, and how many of these were lost or wrong."""

from collections import Counter

COUNTS: Counter[str] = Counter()

ORDER = (
    "inputs tried",
    "faults injected",
    "restarts",
    "requests sent",
    "requests answered",
    "requests answered 503 with Retry-After",
    "requests cut off by the end of a killed process",
    "requests lost",
    "answers wrong",
)


def count(what: str, number: int = 1) -> None:
    """Adds to one of ORDER."""
    assert what in ORDER
    COUNTS[what] += number


def report() -> list[str]:
    """A line each."""
    return [f"{what}: {COUNTS[what]:,}" for what in ORDER]
