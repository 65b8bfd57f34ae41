# SPDX-License-Identifier: AGPL-3.0-only
"""Finds rectangles around text in a probability map (DB, arXiv 1911.08947), with the base image's thresholds."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

_MIN_PROBABILITY = 0.3
_MIN_BOX_PROBABILITY = 0.5
_UNCLIP_RATIO = 1.6
_MAX_BOXES = 1000
# A single character without other text fills less of its rectangle, so its reading needs a high score
_LONE_PEAK = 0.95
_LONE_SIDE_PX = 6
_LONE_UNCLIP_RATIO = 2.5
_LONE_SCORE = 0.98


def find_quads(probability: Float) -> tuple[Float, float]:
    """Returns (N, 4, 2) corners of rectangles around text, clockwise from the top left, in pixels of the probability
    map (H, W); and the minimum score of a reading, which is over 0 if the result may not be text."""
    mask = cv2.dilate((probability > _MIN_PROBABILITY).astype(np.uint8), np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    quads = []
    for contour in contours[:_MAX_BOXES]:
        centre, (w, h), angle = rectangle = cv2.minAreaRect(contour)
        if min(w, h) < 3 or _mean_probability(probability, cv2.boxPoints(rectangle)) < _MIN_BOX_PROBABILITY:
            continue
        grown = _UNCLIP_RATIO * w * h / (w + h)
        quads.append(_order_corners(cv2.boxPoints((centre, (w + grown, h + grown), angle))))
    lone = [] if quads else _find_lone(probability, contours)
    limit = np.array(probability.shape[::-1], np.float32)
    return np.clip(np.reshape(quads or lone, (-1, 4, 2)), 0, limit), _LONE_SCORE if lone else 0.0


def _find_lone(probability: Float, contours: Sequence[NDArray[Any]]) -> list[Float]:
    """Returns the corners of an upright rectangle around the largest contour, if that may be a character."""
    x, y, w, h = cv2.boundingRect(max(contours, key=cv2.contourArea)) if contours else (0, 0, 0, 0)
    if min(w, h) < _LONE_SIDE_PX or probability[y : y + h, x : x + w].max() < _LONE_PEAK:
        return []
    grown = _LONE_UNCLIP_RATIO * w * h / (w + h)
    return [_order_corners(cv2.boxPoints(((x + w / 2, y + h / 2), (w + grown, h + grown), 0.0)))]


def _mean_probability(probability: Float, quad: NDArray[Any]) -> float:
    edges = np.floor(quad.min(axis=0)), np.ceil(quad.max(axis=0))
    (left, top), (right, bottom) = np.clip(edges, 0, np.subtract(probability.shape[::-1], 1)).astype(int)
    mask = np.zeros((bottom - top + 1, right - left + 1), np.uint8)
    cv2.fillPoly(mask, [(quad - (left, top)).astype(np.int32)], 1)
    return float(cv2.mean(probability[top : bottom + 1, left : right + 1], mask)[0])


def _order_corners(quad: NDArray[Any]) -> Float:
    """Orders the corners clockwise from the upper of the two on the left."""
    by_x = quad[np.argsort(quad[:, 0], kind="stable")]
    (top_left, bottom_left), (top_right, bottom_right) = (half[np.argsort(half[:, 1])] for half in (by_x[:2], by_x[2:]))
    return np.stack([top_left, top_right, bottom_right, bottom_left])
