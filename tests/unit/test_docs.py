# SPDX-License-Identifier: AGPL-3.0-only
"""The OpenAPI document as a page: all that it says is there to be read, and nothing of it is HTML."""

import json
from html.parser import HTMLParser
from typing import Any

import pytest

from mt_photos_ml.dashboard.docs import render

SCHEMA: dict[str, Any] = {"type": "object"}


def document(responses: dict[str, Any], body: dict[str, Any] | None = None, **shared: Any) -> dict[str, Any]:
    """An API with one route."""
    operation = {"summary": "What it does", "responses": responses}
    if body is not None:
        operation["requestBody"] = {"content": body}
    return {
        "info": {"title": "An <API>", "version": "v<1>", "description": "This & that."},
        "paths": {"/a/{b}": {"post": operation}},
        "components": {"responses": shared},
    }


class _Text(HTMLParser):
    """What a person reads, by the tag that it stands in."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.read: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.read.append((self.open[-1], data))


def read(document: dict[str, Any], style: str = "") -> list[tuple[str, str]]:
    parser = _Text()
    parser.feed(render(document, style))
    return parser.read


def test_the_page_says_what_the_api_is_and_what_opens_it() -> None:
    page = read(document({}), "p { margin: 0 }")
    assert page[:12] == [
        ("title", "An <API>"),
        ("style", "p { margin: 0 }"),
        ("h1", "An <API> "),
        ("small", "v<1>"),
        ("p", "This & that."),
        ("p", "Every route but "),
        ("code", "GET /"),
        ("p", " and "),
        ("code", "GET /ping"),
        ("p", " wants the header "),
        ("code", "api-key"),
        ("p", "."),
    ]


def test_the_routes_follow_one_another() -> None:
    several = document({})
    operation = {"summary": "Does", "responses": {}}
    several["paths"] = {"/a": {"get": operation, "delete": operation}, "/b": {"post": operation}}
    page = read(several, "p {}")
    assert page[12:] == [
        ("code", "GET /a"),
        ("p", "Does"),
        ("code", "DELETE /a"),
        ("p", "Does"),
        ("code", "POST /b"),
        ("p", "Does"),
    ]


def test_a_route_has_its_method_what_it_does_and_its_answers() -> None:
    answers = {
        "200": {
            "description": "Fine & <good>.",
            "content": {
                "application/json": {"schema": SCHEMA, "example": {"result": ["出口 <b>"]}},
                "text/csv": {"example": "a"},
            },
        },
        "204": {"description": "Nothing.", "content": {"text/html": {"schema": SCHEMA}}},
        "404": {"description": "Not there."},
    }
    page = read(document(answers))
    assert page[page.index(("code", "POST /a/{b}")) :] == [
        ("code", "POST /a/{b}"),
        ("p", "What it does"),
        ("th", "200"),
        ("td", "Fine & <good>."),
        ("pre", '{\n "result": [\n  "出口 <b>"\n ]\n}'),
        ("pre", '"a"'),
        ("th", "204"),
        ("td", "Nothing."),
        ("th", "404"),
        ("td", "Not there."),
    ]


def test_an_answer_that_several_routes_share_is_written_out() -> None:
    page = read(document({"401": {"$ref": "#/components/responses/WrongKey"}}, WrongKey={"description": "Wrong key."}))
    assert page[-2:] == [("th", "401"), ("td", "Wrong key.")]


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ({"type": "string", "description": "The <photo>."}, "The <photo>."),
        ({"type": "string"}, "string"),
        ({"type": "string", "description": ""}, "string"),
        ({"const": 1}, ""),
    ],
)
def test_what_a_route_takes_is_told_field_by_field(field: dict[str, Any], told: str) -> None:
    takes = {"multipart/form-data": {"schema": {"properties": {"file": field, "more": field}}, "example": "how"}}
    page = "".join(text for _, text in read(document({}, takes)))
    assert page.endswith(f"Takes multipart/form-data; file: {told}; more: {told}{json.dumps('how')}")


def test_a_route_that_takes_no_fields_says_of_what_kind_it_takes() -> None:
    page = "".join(text for _, text in read(document({}, {"text/plain": {"schema": {"type": "string"}}})))
    assert page.endswith("What it doesTakes text/plain")
    assert "Takes" not in "".join(text for _, text in read(document({})))
