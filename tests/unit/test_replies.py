# SPDX-License-Identifier: AGPL-3.0-only
"""The shapes of the replies, to the letter."""

import json
import logging
from typing import Any

import numpy as np
import pytest
from starlette.responses import Response

from mt_photos_ml.api import replies
from mt_photos_ml.models.store import ModelUnavailable
from mt_photos_ml.photo import DecoderMissing, PhotoError
from mt_photos_ml.tasks.faces import Face
from mt_photos_ml.tasks.ocr import Line


def said(reply: Response) -> Any:
    return json.loads(bytes(reply.body))


def test_ocr_is_three_lists_of_strings() -> None:
    quad = np.array([[4, 7], [287, 7.004], [287, 28], [4, 28]], np.float32)
    reply = replies.lines([Line("飞机 A", 0.98249, quad)])
    assert said(reply) == {
        "result": {
            "texts": ["飞机 A"],
            "scores": ["0.98"],
            "boxes": [{"x": "4.0", "y": "7.0", "width": "283.0", "height": "21.0"}],
        }
    }
    assert said(replies.lines([])) == {"result": {"texts": [], "scores": [], "boxes": []}}


def test_a_vector_is_strings_with_sixteen_decimals() -> None:
    reply = said(replies.vector(np.array([-0.5, 1e-9], np.float32)))
    assert reply["result"][0] == "-0.5000000000000000"
    assert all(len(number.split(".")[1]) == 16 for number in reply["result"])


def test_a_face_has_whole_pixels_and_a_list_of_numbers() -> None:
    box, embedding = np.array([-1.4, 2.6, 10.2, 20.8], np.float32), np.full(512, 0.5, np.float32)
    face = Face(box, 0.875, np.zeros((5, 2), np.float32), embedding)
    reply = said(replies.faces([face], "buffalo_l"))
    assert reply == {
        "detector_backend": "insightface",
        "recognition_model": "buffalo_l",
        "result": [
            {
                "embedding": [0.5] * 512,
                "facial_area": {"x": -1, "y": 3, "w": 11, "h": 18},
                "face_confidence": 0.875,
            }
        ],
    }


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (PhotoError("the file is empty"), 200, None),
        (replies.BadForm("no field"), 422, None),
        (replies.TooLarge(1_000_000), 413, None),
        (replies.TooSlow(), 408, None),
        (replies.TaskOff("ocr"), 404, None),
        (ModelUnavailable("no mirror", 30), 503, "30"),
        (replies.Busy(100), 503, "5"),
        (DecoderMissing("HEIC"), 503, "3600"),
        (MemoryError(), 503, "60"),
    ],
)
def test_only_a_photo_that_cannot_be_used_is_done_with(error: Exception, status: int, retry: str | None) -> None:
    reply = replies.failure(error)
    assert reply.status_code == status
    assert reply.headers.get("retry-after") == retry
    body = said(reply)
    assert body["result"] == []
    assert body["msg"]


def test_an_error_that_nobody_expected_is_in_the_log_and_not_in_the_reply(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        reply = replies.failure(RuntimeError("/secret/path"))
    assert reply.status_code == 500
    assert b"secret" not in bytes(reply.body)
    assert "/secret/path" in caplog.text
