# SPDX-License-Identifier: AGPL-3.0-only
"""The shapes of the API's replies: what a task found, and what is said when it can't."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from ..models.store import ModelUnavailable
from ..photo import DecoderMissing, PhotoError
from ..tasks.faces import Face
from ..tasks.ocr import Line

log = logging.getLogger("mt_photos_ml")


class BadForm(ValueError):
    """The request is not of the form that the route wants; the message says what is."""


class TooLarge(ValueError):
    """The body is over the limit, in bytes."""


class TooSlow(TimeoutError):
    """The body stopped coming."""


class TaskOff(LookupError):
    """The settings switch this task off."""


class Busy(RuntimeError):
    """So many requests wait that no more are taken."""


def reply(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Any JSON; numpy arrays count as lists."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, headers, media_type="application/json")


def lines(found: Sequence[Line]) -> Response:
    """/ocr: three lists of one length; everything in strings."""
    boxes = [dict(zip(("x", "y", "width", "height"), map(_two_decimals, line.box), strict=True)) for line in found]
    scores = [f"{line.score:.2f}" for line in found]
    return reply({"result": {"texts": [line.text for line in found], "scores": scores, "boxes": boxes}})


def _two_decimals(value: float) -> str:
    return str(round(value, 2))


def vector(embedding: NDArray[np.float32]) -> Response:
    """/clip/img and /clip/txt: every number as a string with 16 decimals."""
    return reply({"result": [f"{value:.16f}" for value in embedding.tolist()]})


def faces(found: Sequence[Face], model: str) -> Response:
    """/represent. model: the recogniser's name."""
    return reply(
        {
            "detector_backend": "insightface",
            "recognition_model": model,
            "result": [
                {"embedding": face.embedding, "facial_area": _area(face), "face_confidence": face.score}
                for face in found
            ],
        }
    )


def _area(face: Face) -> dict[str, int]:
    x1, y1, x2, y2 = (int(value) for value in face.box.round())
    return {"x": x1, "y": y1, "w": x2 - x1, "h": y2 - y1}


def failure(error: BaseException) -> Response:
    """What is said of an error: a photo that can't be used is done with, everything else is to be sent again."""
    match error:
        case PhotoError():
            return _nothing(200, str(error))
        case BadForm():
            return _nothing(422, str(error))
        case TooLarge():
            return _nothing(413, f"the upload is over the limit of {error.args[0] / 1e6:.0f} MB")
        case TooSlow():
            return _nothing(408, "the upload stopped coming", {"connection": "close"})
        case ClientDisconnect():
            return _nothing(400, "the client went away")  # which nobody reads, but the log shows
        case TaskOff():
            return _nothing(404, f"the task {error.args[0]} is switched off (TASKS)")
        case ModelUnavailable():
            return unavailable(str(error), error.retry_after)
        case Busy():
            return unavailable(f"{error.args[0]} requests are waiting already", 5)
        case DecoderMissing():
            return unavailable(str(error), 3600)
        case ArithmeticError():
            return unavailable(str(error), 3600)
        case MemoryError():
            return unavailable("there is not enough memory for this photo now", 60)
    log.error("an error that nobody expected", exc_info=error)
    return _nothing(500, "something went wrong in the service; its log says what")


def unavailable(message: str, retry_after: float) -> Response:
    """503. retry_after: seconds."""
    return _nothing(503, message, {"retry-after": f"{retry_after:.0f}"})


def _nothing(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return reply({"result": [], "msg": message}, status, headers)
