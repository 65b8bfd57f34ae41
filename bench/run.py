# SPDX-License-Identifier: AGPL-3.0-only
"""What the sections of the benchmark share: the services, the photos and what was found."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property

from bench.floor import THREADS, Floor
from bench.load import photo_request, send, text_request
from bench.models import NAME
from bench.photos import JPEG_12, JPEG_48, JPEG_1440, PAGE_12, PAGE_1440, PNG
from bench.report import CONTENDERS, Table
from bench.service import Launcher, Service

CLIP, FACES, OCR = "/clip/img", "/represent", "/ocr"
SERVICES = CONTENDERS[1:]
ALL: Mapping[str, tuple[str, ...]] = {
    CLIP: (JPEG_12, JPEG_1440, JPEG_48, PNG),
    FACES: (JPEG_12, JPEG_1440, JPEG_48, PNG),
    OCR: (PAGE_12, PAGE_1440, JPEG_12, JPEG_48, PNG),
}
"""The first two of each are what the targets are about."""
_PREPARATION_SECONDS, _MODELS = 600.0, 6


@dataclass
class Bench:
    """What the sections share. The services start when they are first needed, and run until `ended` is closed.
    figures: what the targets and the chart need, by name."""

    launcher: Launcher
    photos: Mapping[str, bytes]
    quick: bool
    ended: ExitStack
    tables: list[Table] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    @cached_property
    def straightforward(self) -> Service:
        return self.ended.enter_context(self.launcher.run("straightforward"))

    @cached_property
    def ours(self) -> Service:
        """Ours, with its models prepared."""
        service = self.ended.enter_context(self.launcher.run("ours"))
        send(service.port, self.steps.values())
        self.wait_until_prepared()
        return service

    @cached_property
    def steps(self) -> Mapping[str, bytes]:
        """Requests that need each of the models, by what they need."""
        return {
            "CLIP, photos": photo_request(CLIP, self.photos[JPEG_12]),
            "CLIP, text": text_request("机场的飞机"),
            "faces": photo_request(FACES, self.photos[JPEG_12]),
            "OCR": photo_request(OCR, self.photos[PAGE_12]),
        }

    def wait_until_prepared(self) -> None:
        """A service prepares the models that it has loaded in a pause, and changes over to them."""
        end = time.monotonic() + _PREPARATION_SECONDS
        while len(list(self.launcher.cache.glob("*/*/*/prepared/[!.]*/record.json"))) < _MODELS:
            assert time.monotonic() < end, "not all models were prepared"
            time.sleep(0.5)
        time.sleep(2)

    def floor(self, threads: int = THREADS) -> Floor:
        return Floor(self.launcher.cache / "clip" / NAME, self.launcher.cache / "facial-recognition" / NAME, threads)

    def rounds(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def record(self, title: str, note: str, columns: str, rows: Iterable[Sequence[object]]) -> None:
        """columns: separated by "|"."""
        self.tables.append(Table(title, note, columns.split("|"), list(rows)))
