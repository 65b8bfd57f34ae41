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
    quad = np.array([[4.126, 7], [287, 7.004], [287, 28], [4.126, 28]], np.float32)
    assert said(replies.lines([Line("飞机 A", 0.98249, quad)])) == {
        "result": {
            "texts": ["飞机 A"],
            "scores": ["0.98"],
            "boxes": [{"x": "4.13", "y": "7.0", "width": "282.87", "height": "21.0"}],
        }
    }


def test_a_face_has_whole_pixels_and_a_list_of_numbers() -> None:
    box, embedding = np.array([-1.4, 2.6, 10.2, 20.8], np.float32), np.full(512, 0.5, np.float32)
    area = {"x": -1, "y": 3, "w": 11, "h": 18}
    assert said(replies.faces([Face(box, 0.875, np.zeros((5, 2), np.float32), embedding)], "buffalo_l")) == {
        "detector_backend": "insightface",
        "recognition_model": "buffalo_l",
        "result": [{"embedding": [0.5] * 512, "facial_area": area, "face_confidence": 0.875}],
    }
