# SPDX-License-Identifier: AGPL-3.0-only
"""What came through HAProxy in a run, told at its end."""

FAULTS: list[tuple[str, int, int, int, int, float]] = []
"""Fault; photos sent, answered, wrong, lost; seconds of the slowest."""
MEASURED: list[str] = []
"""What was measured besides."""
