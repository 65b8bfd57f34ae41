# SPDX-License-Identifier: AGPL-3.0-only
"""The shapes of the API's replies."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.responses import Response

from ..tasks.faces import Face
from ..tasks.ocr import Line


def reply(
    content: Any, status: int = 200, headers: dict[str, str] | None = None, retry_after: float | None = None
) -> Response:
    """A reply with any JSON; numpy arrays become lists. retry_after: seconds, rounded up to at least 1."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    response = Response(body, status, headers, media_type="application/json")
    if retry_after is not None:
        response.headers["retry-after"] = str(max(math.ceil(retry_after), 1))
    return response


def failure(
    status: int, message: str, headers: dict[str, str] | None = None, retry_after: float | None = None
) -> Response:
    """A reply that says why there is no result. retry_after: as for reply."""
    return reply({"result": [], "msg": message}, status, headers, retry_after)


def lines(found: Sequence[Line]) -> Response:
    """The reply of /ocr: three lists of the same length; all values are strings."""
    sides = ("x", "y", "width", "height")
    boxes = [{side: str(round(value, 2)) for side, value in zip(sides, line.box, strict=True)} for line in found]
    scores = [f"{line.score:.2f}" for line in found]
    return reply({"result": {"texts": [line.text for line in found], "scores": scores, "boxes": boxes}})


def vector(embedding: NDArray[np.float32]) -> Response:
    """The reply of /clip/img and /clip/txt: each number is a string with 16 decimals."""
    return reply({"result": [f"{value:.16f}" for value in embedding.tolist()]})


def faces(found: Sequence[Face], model: str) -> Response:
    """The reply of /represent. model: the recogniser's name."""
    result = []
    for face in found:
        x1, y1, x2, y2 = map(int, face.box.round())
        area = {"x": x1, "y": y1, "w": x2 - x1, "h": y2 - y1}
        result.append({"embedding": face.embedding, "facial_area": area, "face_confidence": face.score})
    return reply({"detector_backend": "insightface", "recognition_model": model, "result": result})
