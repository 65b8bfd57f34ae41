# SPDX-License-Identifier: AGPL-3.0-only
"""Results are right: colours match their names, faces their person, and each reply its own photo."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import httpx
import numpy as np
import pytest

from contract.api import URL, Api, Vector, cosine
from demo.pictures import COLOURS, DrawnFace, colour_photo, group_photo, text_page
from photos import CHINESE, jpeg

MOST = 360
"""More photos than any service takes at once: its workers, at most 256, and 100 that wait."""


@pytest.fixture(scope="module")
def names(api: Api) -> dict[str, dict[str, Vector]]:
    """The colours' names in two languages, each with its embedding."""
    return {
        "English": {name: api.understand(name) for name in COLOURS},
        "Chinese": {name: api.understand(chinese) for name, chinese in CHINESE.items()},
    }


def nearest(seen: Vector, names: dict[str, Vector]) -> str:
    return max(names, key=lambda name: cosine(seen, names[name]))


@pytest.mark.parametrize("language", ["English", "Chinese"])
@pytest.mark.parametrize("colour", COLOURS)
def test_a_photo_is_nearest_to_the_name_of_its_colour(
    api: Api, names: dict[str, dict[str, Vector]], colour: str, language: str
) -> None:
    photo = jpeg(colour_photo(colour, (400, 300), seed=5))
    assert nearest(api.see(photo), names[language]) == colour


def test_vectors_of_one_persons_faces_are_alike_and_of_others_are_not(api: Api) -> None:
    people = [1, 8, 14, 22, 29]
    taken = [group_photo((1200, 800), people, seed=seed) for seed in (1, 2)]
    first, second = (dict(zip(from_left(drawn), api.faces(jpeg(photo)), strict=True)) for photo, drawn in taken)
    for one in people:
        for other in people:
            alike = cosine(first[one].embedding, second[other].embedding)
            assert alike > 0.8 if one == other else alike < 0.4, (one, other)


def from_left(faces: list[DrawnFace]) -> list[int]:
    """The identities, from left to right."""
    return [face.identity for face in sorted(faces, key=lambda face: face.box)]


def test_each_of_many_replies_at_once_belongs_to_its_own_photo(api: Api, names: dict[str, dict[str, Vector]]) -> None:
    def colour(name: str) -> None:
        assert nearest(api.see(jpeg(colour_photo(name, (640, 480)))), names["English"]) == name

    def page(number: int) -> None:
        photo = jpeg(text_page([f"Number {number}"], (320, 120))[0])
        assert [text.replace(" ", "") for text, _ in api.read(photo)] == [f"Number{number}"]

    def group(size: int) -> None:
        photo, drawn = group_photo((900, 700), range(size), seed=size)
        found = api.faces(jpeg(photo))
        assert len(found) == size
        corners = np.array([face.box[:2] for face in found])
        for face in drawn:
            assert np.abs(corners - face.box[:2]).max(axis=1).min() < 5

    def words(name: str) -> None:
        assert cosine(api.understand(CHINESE[name]), names["Chinese"][name]) > 0.9999

    work: list[Callable[[], None]] = []
    for i, name in enumerate(list(COLOURS)[:6]):
        work += [partial(colour, name), partial(page, 4701 + i), partial(group, i + 1), partial(words, name)]
    everybody = Barrier(len(work))

    def at_once(task: Callable[[], None]) -> None:
        everybody.wait()
        task()

    with ThreadPoolExecutor(len(work)) as clients:
        list(clients.map(at_once, work))


@pytest.mark.skipif(bool(URL) and "PYTEST_XDIST_WORKER" in os.environ, reason="others use the same service right now")
def test_requests_over_the_limit_of_the_queue_get_503_with_retry_after(api: Api) -> None:
    photo, unlimited = jpeg(colour_photo("red", (320, 240))), httpx.Limits(max_connections=None)
    many = httpx.Client(base_url=api.url, headers={"api-key": api.key}, timeout=60, trust_env=False, limits=unlimited)
    with many, ThreadPoolExecutor(MOST) as clients:
        answers = list(clients.map(lambda _: many.post("/represent", files={"file": photo}), range(MOST)))
    assert {answer.status_code for answer in answers} <= {200, 503}
    for answer in answers:
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) > 0
            assert answer.json() == {"result": [], "msg": answer.json()["msg"]}
    assert len(api.see(photo)) > 0
