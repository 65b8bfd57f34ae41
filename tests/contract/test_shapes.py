# SPDX-License-Identifier: AGPL-3.0-only
"""The reply of every route: its fields, its types, and numbers in the form that MT Photos reads."""

import re
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from contract.api import PHOTO_ROUTES, Api
from demo.pictures import colour_photo, group_photo, text_page
from photos import jpeg

TEXTS = ["飞机", "red", "", "a red car\nin the rain", "🛩️", "红" * 5000, " \t", "\x00", "\ufffd"]


def is_embedding(numbers: list[str], length: int) -> bool:
    written = len(numbers) == length and all(re.fullmatch(r"-?\d\.\d{16}", number) for number in numbers)
    return written and bool(np.isclose(np.linalg.norm(np.array(numbers, float)), 1, atol=1e-4))


def test_the_page_tells_people_what_this_is_and_how_to_set_it_up(api: Api, about: dict[str, Any]) -> None:
    answer = httpx.get(api.url, trust_env=False)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    for words in ("MT Photos", "API_AUTH_KEY", api.url, str(about["clip_vector_length"]), about["ocr_model"]):
        assert words in answer.text
    assert api.key not in answer.text


def test_ping_answers_pong(api: Api) -> None:
    answer = httpx.get(f"{api.url}/ping", trust_env=False)
    assert answer.text == "pong"
    assert answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("query", ["", "?t=1", "?t=1&t=2&file=%00%FF", "?" + "x" * 2000])
@pytest.mark.parametrize("body", [b"", b"anything", b"{}"])
def test_check_describes_the_service_whatever_the_query_and_the_body(api: Api, query: str, body: bytes) -> None:
    answer = api.http.post(f"/check{query}", content=body)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    told = answer.json()
    assert (told["result"], told["title"]) == ("pass", "mt-photos-ai服务")
    assert told["help"] == "https://mtmt.tech/docs/advanced/ocr_api"
    assert (told["detector_backend"], told["facial_max_distance"]) == ("insightface", 0.5)
    assert told["env_use_dml"] is False
    assert isinstance(told["recognition_model"], str)
    assert told["recognition_model"]
    assert isinstance(told["facial_min_score"], float)
    assert 0 < told["facial_min_score"] < 1


def test_restart_gives_pass_and_later_answers_are_the_same(api: Api) -> None:
    photo = jpeg(colour_photo("red", (300, 200)))
    before = api.see(photo)
    for _ in range(2):
        answer = api.http.post("/restart")
        assert (answer.status_code, answer.json()) == (200, {"result": "pass"})
    assert np.allclose(api.see(photo), before, atol=1e-4)
    assert api.result("/represent", photo) == []


def test_ocr_answers_with_texts_scores_and_boxes_in_reading_order(api: Api) -> None:
    lines = ["Platform 12", "Departure 08:45", "Central Station"]
    answer = api.post_photo("/ocr", jpeg(text_page(lines, (480, 240))[0]))
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["result"]
    result = answer.json()["result"]
    assert sorted(result) == ["boxes", "scores", "texts"]
    assert [text.replace(" ", "") for text in result["texts"]] == [line.replace(" ", "") for line in lines]
    assert len(result["scores"]) == len(result["boxes"]) == len(lines)
    assert all(re.fullmatch(r"[01]\.\d\d", score) and 0.5 <= float(score) <= 1 for score in result["scores"])
    for box in result["boxes"]:
        assert sorted(box) == ["height", "width", "x", "y"]
        assert all(re.fullmatch(r"-?\d+\.\d{1,2}", number) for number in box.values())


def test_ocr_answers_with_empty_lists_if_there_is_no_text(api: Api) -> None:
    photo = jpeg(group_photo((320, 240), [])[0])
    assert api.result("/ocr", photo) == {"texts": [], "scores": [], "boxes": []}


def test_a_photo_gets_a_vector_of_the_length_that_check_reports(api: Api, about: dict[str, Any]) -> None:
    answer = api.post_photo("/clip/img", jpeg(colour_photo("blue", (320, 240))))
    assert (list(answer.json()), answer.headers["content-type"]) == (["result"], "application/json")
    assert is_embedding(answer.json()["result"], about["clip_vector_length"])


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_any_text_gets_a_vector_of_the_same_length(api: Api, about: dict[str, Any], text: str) -> None:
    answer = api.http.post("/clip/txt", json={"text": text})
    assert (answer.status_code, list(answer.json())) == (200, ["result"])
    assert is_embedding(answer.json()["result"], about["clip_vector_length"])


def test_represent_answers_with_a_vector_an_area_and_a_confidence_for_each_face(
    api: Api, about: dict[str, Any]
) -> None:
    answer = api.post_photo("/represent", jpeg(group_photo((640, 480), [2, 9])[0]))
    told = answer.json()
    assert sorted(told) == ["detector_backend", "recognition_model", "result"]
    assert told["detector_backend"] == "insightface"
    assert told["recognition_model"] == about["recognition_model"]
    assert len(told["result"]) == 2
    for face in told["result"]:
        assert sorted(face) == ["embedding", "face_confidence", "facial_area"]
        assert len(face["embedding"]) == 512
        assert all(isinstance(number, float) for number in face["embedding"])
        assert np.linalg.norm(face["embedding"]) == pytest.approx(1, abs=1e-4)
        assert sorted(face["facial_area"]) == ["h", "w", "x", "y"]
        assert all(type(number) is int for number in face["facial_area"].values())
        assert about["facial_min_score"] <= face["face_confidence"] <= 1


def test_represent_answers_with_an_empty_list_if_there_is_no_face(api: Api, about: dict[str, Any]) -> None:
    assert api.post_photo("/represent", jpeg(group_photo((640, 480), [])[0])).json() == {
        "detector_backend": "insightface",
        "recognition_model": about["recognition_model"],
        "result": [],
    }


@pytest.mark.parametrize("route", PHOTO_ROUTES)
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (10_000, 20)], ids=str)
def test_a_photo_of_odd_size_is_accepted(api: Api, route: str, size: tuple[int, int]) -> None:
    answer = api.post_photo(route, jpeg(Image.new("RGB", size, "red")))
    assert (answer.status_code, answer.json().get("msg")) == (200, None)
