# SPDX-License-Identifier: AGPL-3.0-only
"""Measures each task on a machine's device and on its processor."""

import json
import shutil
import subprocess
import time
from collections.abc import Mapping
from functools import partial
from http.client import HTTPConnection
from typing import Any

import numpy as np

from bench.measure import KEY, Request, milliseconds, photo_request, text_request
from bench.photos import CLIP, FACES, JPEG_12, JPEG_1440, OCR, PAGE_12, PAGE_1440, photo
from bench.report import Rows
from bench.sections import Bench
from bench.service import Service

_REQUESTS = {
    "/clip/img 12 MP": photo_request(CLIP, photo(JPEG_12)),
    "/clip/img 1440": photo_request(CLIP, photo(JPEG_1440)),
    "/represent 12 MP": photo_request(FACES, photo(JPEG_12)),
    "/represent 1440": photo_request(FACES, photo(JPEG_1440)),
    "/ocr 12 MP page": photo_request(OCR, photo(PAGE_12)),
    "/ocr 1440 page": photo_request(OCR, photo(PAGE_1440)),
    "/ocr without text": photo_request(OCR, photo(JPEG_1440)),
}
_TEXTS = "/clip/txt"
_CLIENTS, _PLAN_SECONDS = 32, 1200


def device(bench: Bench) -> Rows:
    """Milliseconds of the first request after the start and of one request at a time after all shapes are planned
    (median); requests a second with 32 clients; the device of the task's models, ready sessions, the card's memory."""
    rows = list[Mapping[str, object]]()
    for wanted in ("auto", "cpu"):
        settings = {f"{task}_DEVICE": wanted for task in ("OCR", "CLIP", "FACE")}
        with bench.launcher.run("ours", settings) as service:
            names = (*_REQUESTS, _TEXTS)
            first = {name: milliseconds(partial(service.client.ask, _request(name, 0))) for name in names}
            models = _planned(service)
            for name in names:
                rounds, many = bench.rounds(15, 5), bench.rounds(256, 32)
                requests = [_request(name, number) for number in range(1, 1 + rounds + many)]
                alone = [milliseconds(partial(service.client.ask, request)) for request in requests[:rounds]]
                a_second, _ = service.send(requests[rounds:], _CLIENTS)
                used = _card_mb()
                rows.append(
                    {"request": name, "wanted": wanted, **_where(models, name), "first, ms": first[name]}
                    | {"alone, ms": float(np.median(alone)), "a second": a_second, "card, MB": used}
                )
    return rows


def _request(name: str, number: int) -> Request:
    """Each text differs, because the service caches their vectors."""
    return text_request(f"机场的飞机 {number}") if name == _TEXTS else _REQUESTS[name]


def _planned(service: Service) -> list[Mapping[str, Any]]:
    """Waits until the devices have planned all shapes; returns the status of the models."""
    end = time.monotonic() + _PLAN_SECONDS
    while True:
        connection = HTTPConnection("127.0.0.1", service.client.port, timeout=60)
        connection.request("GET", "/api/status", headers={"api-key": KEY})
        models: list[Mapping[str, Any]] = json.loads(connection.getresponse().read())["models"]
        connection.close()
        if not any(model["plans"] and model["plans"]["waiting"] for model in models):
            return models
        assert time.monotonic() < end, "not all shapes were planned"
        time.sleep(1)


def _where(models: list[Mapping[str, Any]], name: str) -> dict[str, object]:
    task = "ocr" if "ocr" in name else "faces" if "represent" in name else "clip"
    ours = [model for model in models if model["task"] == task]
    sessions = sum(model["plans"]["ready"] for model in ours if model["plans"])
    return {"runs on": ", ".join(dict.fromkeys(model["runs_on"] for model in ours)), "sessions": sessions}


def _card_mb() -> float:
    """Megabytes in use on the Nvidia card; 0 if there is none."""
    if not shutil.which("nvidia-smi"):
        return 0.0
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0])
