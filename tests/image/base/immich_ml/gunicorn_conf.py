# SPDX-License-Identifier: AGPL-3.0-only
"""A stand-in with upstream's public names: the cards are dealt out to the workers."""

import os
from typing import Any

device_ids = os.environ.get("MACHINE_LEARNING_DEVICE_IDS", "0").replace(" ", "").split(",")


def pre_fork(arbiter: Any, _: Any) -> None:
    os.environ["MACHINE_LEARNING_DEVICE_ID"] = device_ids[len(arbiter.WORKERS) % len(device_ids)]
