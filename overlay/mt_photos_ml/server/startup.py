# SPDX-License-Identifier: AGPL-3.0-only
"""The first steps of every process of the service: check the processor, read the settings, set up the log."""

import os
import sys
from ipaddress import ip_address
from typing import TYPE_CHECKING

from ..machine.cpu import require_processor
from .logs import to_stderr

if TYPE_CHECKING:
    from ..settings import Settings


def check_machine() -> None:
    """Ends the process with a message if the processor is too old. Call it before importing numpy and onnxruntime."""
    require_processor()
    # from 1.29 on, onnxruntime reports to its maker which models it runs, unless this is set before the import
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # otherwise it prints warnings about odd photos


def settings_or_exit(exit_code: int = 2, *, check: bool = True) -> "Settings":
    """Reads the settings and sets up the log. Ends the process with one line for each variable that is wrong. check:
    whether to check the chosen models too."""
    from ..settings import SettingsError, load
    from . import official

    try:
        settings = load(official.settings_of(os.environ))
        if check:
            from ..api import upstream
            from ..models.checks import check_models  # not at the top, because it imports numpy

            check_models(settings, preloads_others=upstream.is_served(settings))
    except SettingsError as error:
        print(f"mt-photos-ml: {error}".replace("\n", "\nmt-photos-ml: "), file=sys.stderr)
        sys.exit(exit_code)
    to_stderr(settings.log_level, settings.log_format, settings.instance_name)
    return settings


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach this host."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
