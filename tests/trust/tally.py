# SPDX-License-Identifier: AGPL-3.0-only
"""The counts of a run, printed at its end: inputs, faults, requests, and how many were lost or wrong."""

from collections import Counter

COUNTS = Counter(
    {
        "inputs tried": 0,
        "faults injected": 0,
        "restarts": 0,
        "requests sent": 0,
        "requests answered": 0,
        "requests answered 503 with Retry-After": 0,
        "requests cut off by the end of a killed process": 0,
        "requests lost": 0,
        "answers wrong": 0,
    }
)


def count(what: str, number: int = 1) -> None:
    assert what in COUNTS
    COUNTS[what] += number
