# SPDX-License-Identifier: AGPL-3.0-only
"""Results of a run, printed at its end."""

FAULTS: list[tuple[str, int, int, int, int, float]] = []
"""Fault; photos sent, answered correctly, answered wrongly, lost; seconds of the slowest."""
MEASURED: list[str] = []
"""Other measurements, a line each."""
