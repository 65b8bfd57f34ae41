# SPDX-License-Identifier: AGPL-3.0-only
"""What the log says at the start."""

from pathlib import Path

import pytest

from demo.__main__ import environment as demo_environment
from mt_photos_ml.server.announce import misspelt
from service import KEY, running


def test_the_start_says_what_is_set_what_was_not_understood_and_what_to_do(cache: Path, tmp_path: Path) -> None:
    others = {"HF_ENDPOINT": "http://me:secret@127.0.0.1:9", "FACE_MIN_SCORE": "0.7", "LOG_LEVEL": "debug"}
    with running(tmp_path, {**demo_environment(cache), **others}) as service:
        log = service.log.read_text()
    assert "clip: demo-colours, vectors of 512 numbers" in log
    assert "this is the demo" in log
    assert "FACE_MIN_SCORE=0.7" in log
    assert "HF_ENDPOINT=http://127.0.0.1:9" in log
    assert "WARNING LOG_LEVEL is no setting and does nothing; is IMMICH_LOG_LEVEL meant?" in log
    assert f"models are kept in {cache}" in log
    assert f"next: open {service.url} in a browser" in log
    assert KEY not in log
    assert "secret" not in log


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("API_KEY", "API_AUTH_KEY"),
        ("OCR_MODEL", "OCR_MODEL_NAME"),
        ("MACHINE_LEARNING_MODEL_INTER_OP_THREADS", "MACHINE_LEARNING_MODEL_INTRA_OP_THREADS"),
        ("API_AUTH_KEY_FILES", "API_AUTH_KEY_FILE"),
    ],
)
def test_a_variable_that_looks_like_a_setting_is_told(name: str, meant: str) -> None:
    assert list(misspelt([name])) == [(name, meant)]


def test_settings_and_variables_of_others_are_none_of_them() -> None:
    others = ["HTTP_PORT", "http_port", "https_proxy", "HF_HOME", "HF_HUB_OFFLINE", "LD_LIBRARY_PATH", "HOST", "PORT"]
    of_the_base = ["IMMICH_BUILD", "IMMICH_SOURCE_REF", "MACHINE_LEARNING_MODEL_ARENA", "MACHINE_LEARNING_RKNN_THREADS"]
    assert list(misspelt([*others, *of_the_base])) == []
