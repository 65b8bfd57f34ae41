# SPDX-License-Identifier: AGPL-3.0-only
"""What the commands share: the settings, or why they can't be used, and tables."""

import sys
from typing import TYPE_CHECKING

from ..models import checks
from ..server import logs
from ..settings import Settings, SettingsError, load

if TYPE_CHECKING:
    from rich.table import Table

PIPE_COLUMNS = 140


def settings_or_exit(check: bool = False) -> Settings:
    """check: whether the models that they choose are checked too. Exits with 2 if something is wrong."""
    try:
        settings = load()
        if check:
            checks.check_models(settings)
    except SettingsError as error:
        print(f"mt-photos-ml: {error}".replace("\n", "\nmt-photos-ml: "), file=sys.stderr)
        sys.exit(2)
    logs.to_stderr(settings.log_level, settings.log_format)
    return settings


def print_table(table: "Table") -> None:
    """As wide as the terminal, or wide enough for most tables if it goes to a pipe or a file."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS).print(table)
