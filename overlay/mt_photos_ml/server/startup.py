# SPDX-License-Identifier: AGPL-3.0-only
"""The first steps of every process of the service: the processor, the settings, the log."""

import os
import sys
from ipaddress import ip_address
from typing import TYPE_CHECKING

from ..machine.cpu import require_processor
from .logs import to_stderr

if TYPE_CHECKING:
    from ..settings import Settings


def check_machine() -> None:
    """Call it before numpy and onnxruntime are imported. Ends the process with a line if the processor is too old."""
    require_processor()
    # from 1.29 on onnxruntime reports to its maker which models are used, unless this is set before it is imported
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # it would print what it finds odd in a photo


def settings_or_exit(exit_code: int = 2, *, check: bool = True) -> "Settings":
    """The settings, and the log as they want it. Ends the process with a line for each variable that is wrong. check:
    whether to look at the models they choose too."""
    from ..settings import SettingsError, load
    from . import official

    try:
        settings = load(official.settings_of(os.environ))
        if check:
            from ..api import upstream
            from ..models.checks import check_models  # which imports numpy

            check_models(settings, preloads_others=upstream.is_served(settings))
    except SettingsError as error:
        print(f"mt-photos-ml: {error}".replace("\n", "\nmt-photos-ml: "), file=sys.stderr)
        sys.exit(exit_code)
    to_stderr(settings.log_level, settings.log_format, settings.instance_name)
    return settings


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
