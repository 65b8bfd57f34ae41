# SPDX-License-Identifier: AGPL-3.0-only
"""Prints tables."""

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

PIPE_COLUMNS = 140


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Prints a table as wide as the terminal; into a pipe or a file, PIPE_COLUMNS wide."""
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS).print(table)
