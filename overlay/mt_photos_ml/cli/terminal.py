# SPDX-License-Identifier: AGPL-3.0-only
"""Tables on the terminal."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

PIPE_COLUMNS = 140


def print_table(table: "Table") -> None:
    """As wide as the terminal, or wide enough for most tables if it goes to a pipe or a file."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS).print(table)
