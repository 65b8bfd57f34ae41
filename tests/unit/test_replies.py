# SPDX-License-Identifier: AGPL-3.0-only
"""The shapes of the replies, to the letter."""

import json
from typing import Any

import numpy as np
from starlette.responses import Response

from mt_photos_ml.api import replies
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
    quad = np.array([[4.126, 7], [9, 7], [9, 8], [4.126, 8]], np.float64)
    assert said(replies.lines([Line("A", 1, quad)]))["result"]["boxes"][0]["x"] == "4.13"
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
            {"embedding": [0.5] * 512, "facial_area": {"x": -1, "y": 3, "w": 11, "h": 18}, "face_confidence": 0.875}
        ],
    }


def test_any_reply_is_json_with_its_status_and_headers() -> None:
    reply = replies.nothing(503, "come again", {"retry-after": "5"})
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
    assert reply.headers["content-type"] == "application/json"
    assert said(reply) == {"result": [], "msg": "come again"}
    assert replies.reply({}).status_code == 200
    assert said(replies.reply({"numbers": np.arange(3)})) == {"numbers": [0, 1, 2]}
