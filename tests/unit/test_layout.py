# SPDX-License-Identifier: AGPL-3.0-only
"""Columns of prose are read one after the other; tables, receipts, forms and chats are read row by row."""

from collections.abc import Sequence

import numpy as np
import pytest

from mt_photos_ml.tasks.layout import order_for_reading

Box = tuple[float, float, float, float]

PITCH, HEIGHT = 44, 34
RAGGED = (1.0, 0.93, 0.88, 0.97, 0.84, 0.4)
"""Widths of a paragraph's lines, as shares of the column's width."""
TURNS = pytest.mark.parametrize("degrees", [0, 4, -4, 90, 180, 270])


def _column(left: float, top: float, lines: int, width: float = 440, pitch: float = PITCH) -> list[Box]:
    """Paragraphs, as boxes (left, top, right, bottom)."""
    tops = (top + pitch * i for i in range(lines))
    return [(left, y, left + width * RAGGED[i % len(RAGGED)], y + HEIGHT) for i, y in enumerate(tops)]


def _cells(lefts: Sequence[float], widths: Sequence[Sequence[float]], pitch: float = PITCH) -> list[Box]:
    """The cells of a table, row by row. lefts: of the columns. widths: of the cells in each row."""
    rows = ((60 + pitch * i, row) for i, row in enumerate(widths))
    return [(x, y, x + w, y + HEIGHT) for y, row in rows for x, w in zip(lefts, row, strict=True)]


def _assert_read(boxes: Sequence[Box], degrees: float = 0) -> None:
    """Asserts that the boxes are read in this order, whatever order they are found in, on a page that is turned."""
    turn = np.radians(degrees)
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    quads = [np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)]) @ turned.T for x1, y1, x2, y2 in boxes]
    found = np.random.default_rng(1).permutation(len(boxes))
    order = order_for_reading([quads[i] for i in found], [10] * len(boxes))
    assert [int(found[i]) for i in order] == list(range(len(boxes)))


@TURNS
@pytest.mark.parametrize("top", [60, 60 + PITCH // 2])
def test_two_columns_of_unequal_height_are_read_one_after_the_other(degrees: float, top: float) -> None:
    _assert_read([*_column(60, 60, 18), *_column(560, top, 11)], degrees)


@TURNS
def test_three_columns_are_read_below_their_headline_and_above_their_footer(degrees: float) -> None:
    headline, footer = [(60, 20, 1200, 80)], [(300, 1000, 1100, 1034)]
    columns = [*_column(60, 120, 18), *_column(560, 120, 16), *_column(1060, 120, 11)]
    _assert_read([*headline, *columns, *footer], degrees)


def test_a_short_headline_over_one_of_three_columns_is_read_first() -> None:
    columns = [*_column(60, 120, 18), *_column(560, 120, 16), *_column(1060, 120, 11)]
    _assert_read([(640, 30, 900, 90), *columns])


def test_a_line_across_columns_separates_the_text_above_from_the_text_below() -> None:
    above, below = ([*_column(60, y, 8), *_column(560, y, 7)] for y in (60, 560))
    _assert_read([*above, (60, 460, 1000, 500), *below])


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_names_and_prices_are_read_row_by_row(degrees: float) -> None:
    names = [300, 420, 200, 350, 410, 180, 390, 400]
    _assert_read(_cells([60, 700], [(name, 130) for name in names]), degrees)


def test_cells_of_any_width_are_read_row_by_row() -> None:
    widths = np.random.default_rng(3).uniform(120, 440, (14, 3)).tolist()
    _assert_read(_cells([60, 560, 1060], widths))


def test_cells_as_wide_as_prose_are_read_row_by_row_if_rows_are_far_apart() -> None:
    _assert_read(_cells([60, 560], [(400, 420)] * 10, pitch=2.2 * HEIGHT))


def test_the_last_rows_of_a_table_are_read_like_the_rows_above_them() -> None:
    _assert_read(_cells([60, 560], [(200, 150), (430, 90), (150, 300)] * 3 + [(430, 440)] * 6))


def test_both_sides_of_a_chat_are_read_from_top_to_bottom() -> None:
    bubbles = [_column(60 if i % 3 else 560, 60 + 4 * PITCH * i, 3) for i in range(8)]
    _assert_read([line for bubble in bubbles for line in bubble])


def test_a_line_below_a_wide_gap_is_read_after_all_columns() -> None:
    _assert_read([*_column(60, 60, 12), *_column(560, 60, 9), (60, 60 + 15 * PITCH, 300, 60 + 15 * PITCH + HEIGHT)])


def test_no_lines_give_an_empty_order() -> None:
    assert order_for_reading([], []) == []
