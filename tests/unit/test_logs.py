# SPDX-License-Identifier: AGPL-3.0-only
"""The log: our lines and upstream's, each once, on standard error, as text or as JSON."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from demo.__main__ import environment as demo_environment
from service import post, running, until

PROGRAM = """
import logging
from mt_photos_ml.server.logs import to_stderr

upstream = logging.getLogger("ml.log")
upstream.setLevel("INFO")
to_stderr("info")
for name in ("mt_photos_ml", "mt_photos_ml.access", "ml.log"):
    logging.getLogger(name).info("said by %s", name)
logging.getLogger("another.library").info("too quiet")
logging.getLogger("mt_photos_ml").debug("too quiet")
"""


def test_our_lines_and_upstreams_are_logged_once_and_other_libraries_only_if_they_warn() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=30)
    assert [line.partition("INFO ")[2] for line in ended.stderr.splitlines()] == [
        "said by mt_photos_ml",
        "said by mt_photos_ml.access",
        "said by ml.log",
    ]


def test_as_json_each_line_is_an_object_and_a_requests_line_has_its_fields(
    cache: Path, tmp_path: Path, photo: bytes
) -> None:
    with running(tmp_path, {**demo_environment(cache), "LOG_FORMAT": "json", "INSTANCE_NAME": "nas-1"}) as service:
        post(service, "/ocr", photo)
        post(service, "/ocr", b"no photo")
        until(lambda: service.log.read_text().count('"/ocr"') == 2)
        os.kill(service.pid, signal.SIGKILL)
        until(lambda: "SIGKILL" in service.log.read_text())
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert {line["instance"] for line in lines} == {"nas-1"}
    assert any(line["logger"] == "gunicorn.error" and "SIGKILL" in line["message"] for line in lines)
    good, bad = [line["request"] for line in lines if "request" in line and line["request"]["path"] == "/ocr"]
    assert (good["status"], good["photo"]) == (200, "JPEG 2400x1800")
    assert good["total_ms"] >= good["model_ms"] > 0
    assert (bad["reason"], bad["error"]) == ("PhotoError", "the file is not a photo, or its beginning is damaged")


def test_an_unexpected_error_is_one_line_of_json_with_its_traceback() -> None:
    program = """
import logging
from mt_photos_ml.server.logs import to_stderr
to_stderr("info", "json")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("mt_photos_ml").exception("it broke")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    (line,) = ended.stderr.splitlines()
    assert "ZeroDivisionError" in json.loads(line)["exception"]
