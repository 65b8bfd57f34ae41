# SPDX-License-Identifier: AGPL-3.0-only
"""Python loads this module at start if its folder is in PYTHONPATH. It slows photos down or makes them fail, and limits
the service's queue."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

import mt_photos_ml.engine
from mt_photos_ml.runtime.scheduler import ScheduledSession

_pace, _compute = Path(os.environ["SLOW_PACE"]), ScheduledSession.run


def _slowly(session: ScheduledSession, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    if "textual" not in session.name:
        time.sleep(float(_pace.read_text()))  # if it is not a number: ValueError, an unexpected error
    return _compute(session, feed)


vars(mt_photos_ml.engine)["MAX_WAITING"] = int(os.environ["SLOW_WAITING"])
ScheduledSession.run = _slowly  # type: ignore[assignment, method-assign]
