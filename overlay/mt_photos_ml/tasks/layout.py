# SPDX-License-Identifier: AGPL-3.0-only
"""The order in which people read the lines of a page."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

# What distinguishes a column of prose from cells of a table, prices, and bubbles of a chat.
_MIN_LINES = 4
_MIN_LENGTH = 7.0  # median width, in line heights: about 16 Latin letters or 8 Chinese characters
_MIN_FILL = 0.8  # median width, as a share of the column's
_MAX_PITCH = 1.62  # distance from line to line, in line heights
_TALL = 1.25  # in line heights; a taller line is a headline
_MIN_BESIDE = 0.5  # share of the shortest column's lines that stand beside a line of another column
_MAX_GAP = 2.0  # in line heights; a taller blank band separates two parts of the page


def order_for_reading(quads: Sequence[Floats], lengths: Sequence[int]) -> list[int]:
    """Returns the indices of lines in reading order: rows from top to bottom, each from left to right, in the direction
    of most of the text.

    Columns of prose that stand side by side are read one after the other. They are columns of prose if a white gutter
    separates them from top to bottom, and each has at least four lines, most of them long and about as wide as the
    column. Cells of a table, or names and prices, are short or vary in width and are read across; so are the two sides
    of a chat, which are never at the same height. A line across the gutter, such as a headline, or a large gap ends
    the columns.

    quads: (4, 2) corners in pixels, clockwise from the text's own top left. lengths: how many characters each has.
    """
    if not len(quads):
        return []
    along = np.stack([quad[1] - quad[0] for quad in quads])
    quarters = np.round(np.arctan2(along[:, 1], along[:, 0]) / (np.pi / 2)).astype(int) % 4
    main = int(np.bincount(quarters, weights=lengths, minlength=4).argmax())
    upright = _turn(-main * np.pi / 2)
    centres = np.stack([quad.mean(axis=0) for quad in quads]) @ upright.T
    extents = np.stack([np.ptp(quad @ upright.T, axis=0) for quad in quads])
    slant = along[quarters == main].sum(axis=0)
    level = np.stack(quads) @ _turn(-np.arctan2(slant[1], slant[0])).T
    columns = _find_columns(np.concatenate([level.min(axis=1), level.max(axis=1)], axis=1))
    return [i for part in columns for row in _rows(part, centres, extents[:, 1]) for i in row]


def _turn(angle: float) -> Floats:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _rows(lines: Sequence[int], centres: Floats, heights: Floats) -> list[list[int]]:
    """Groups these lines into rows from top to bottom, each from left to right."""
    rows: list[list[int]] = []
    for i in sorted(lines, key=lambda i: centres[i, 1]):
        last = rows[-1][-1] if rows else i
        if not rows or abs(centres[i, 1] - centres[last, 1]) >= 0.5 * min(heights[i], heights[last]):
            rows.append([])
        rows[-1].append(i)
    return [sorted(row, key=lambda i: centres[i, 0]) for row in rows]


def _find_columns(boxes: Floats) -> list[list[int]]:
    """Splits the page into parts in reading order: each is a column, or the lines between columns. boxes: (N, 4) left,
    top, right and bottom of the levelled lines."""
    height = max(float(np.median(boxes[:, 3] - boxes[:, 1])), 1.0)
    # the horizontal extent of each line as bits, one per quarter of a line height
    edges = np.floor((boxes[:, [0, 2]] - boxes[:, 0].min()) / (height / 4)).astype(int).tolist()
    covers = [(2 << right) - (1 << left) for left, right in edges]
    tall = (boxes[:, 3] - boxes[:, 1]) / height
    is_long = (boxes[:, 2] - boxes[:, 0] >= _MIN_LENGTH * (boxes[:, 3] - boxes[:, 1])).tolist()
    order = np.argsort(boxes[:, 1] + boxes[:, 3], kind="stable").tolist()
    tops, bottoms = boxes[:, 1].tolist(), boxes[:, 3].tolist()
    parts, start = [list[int]()], 0
    while start < len(order):
        found, stop = list[list[int]](), start + 1
        covered, bottom, above, long = 0, bottoms[order[start]], order[start - 1], 0
        near = start > 0 and tops[order[start]] - bottoms[above] <= _MAX_GAP * height
        for end in range(start, len(order) + 1):
            line = order[end] if end < len(order) else -1
            wider = covered | covers[line]
            gutters = _starts(wider).bit_count() - _starts(covered).bit_count()
            ends = line < 0 or gutters < 0 or tops[line] - bottom > _MAX_GAP * height
            # at least half of the lines must be long; without this check a table of a thousand cells took seconds
            if (ends or gutters) and 2 * long >= end - start:
                columns = [list[int]() for _ in range(_starts(covered).bit_count())]
                for i in order[start:end]:
                    columns[(_starts(covered) & (2 << edges[i][0]) - 1).bit_count() - 1].append(i)
                # if the line above is in the same columns, they were already rejected together with it
                goes_on = _starts(covered | covers[above]).bit_count() == len(columns) and tall[above] <= _TALL
                if not (goes_on and near) and _are_prose([boxes[column] for column in columns], boxes[order[start]]):
                    found, stop = columns, end
            if ends:
                break
            covered, bottom, long = wider, max(bottom, bottoms[line]), long + is_long[line]
        if found:
            parts += [*found, []]
        else:
            parts[-1].append(order[start])
        start = stop
    return parts


def _starts(covered: int) -> int:
    """Keeps the first bit of each run of ones."""
    return covered & ~(covered << 1)


def _are_prose(columns: list[Floats], first: Floats) -> bool:
    """Whether these are columns of prose side by side. columns: the boxes (N, 4) of each one's lines, from top to
    bottom. first: the box of the topmost line, which must not be a headline."""
    if len(columns) < 2 or min(map(len, columns)) < _MIN_LINES:
        return False
    for lines in columns:
        width, height = np.median(lines[:, 2:] - lines[:, :2], axis=0)
        full = width >= max(_MIN_LENGTH * height, _MIN_FILL * np.ptp(lines[:, [0, 2]]))
        if not full or np.median(np.diff(lines[:, 1])) > _MAX_PITCH * height or np.diff(first[1::2]) > _TALL * height:
            return False
    shortest = min(columns, key=len)
    others = np.concatenate([lines for lines in columns if lines is not shortest])
    beside = (shortest[:, None, 1] < others[:, 3]) & (shortest[:, None, 3] > others[:, 1])
    return bool(beside.any(axis=1).mean() >= _MIN_BESIDE)
