# SPDX-License-Identifier: AGPL-3.0-only
"""The sections of the benchmark: each measures one thing, and records it in tables and in named figures."""

from collections.abc import Callable, Mapping

from bench import footprint, speed
from bench.run import Bench

SLOW = {"ocr-memory"}
"""Left out of a quick run."""
SECTIONS: Mapping[str, Callable[[Bench], None]] = {
    "one": speed.one_at_a_time,
    "many": speed.many_at_once,
    "overhead": speed.overhead,
    "check": speed.check_under_load,
    "start": footprint.start,
    "memory": footprint.memory,
    "ocr-memory": footprint.ocr_memory,
    "texts": speed.texts,
}
