# SPDX-License-Identifier: AGPL-3.0-only
"""The commands that ask a service about photos, and the client that they stand on."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.pictures import colour_photo, group_photo, text_page
from mt_photos_ml.cli.client import ApiError, Client
from photos import jpeg, turned
from service import KEY, Service, free_port, run_command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photos, one of them turned by its EXIF, and what is none."""
    photos = tmp_path / "photos"
    (photos / "@eaDir").mkdir(parents=True)
    (photos / "people.jpg").write_bytes(jpeg(group_photo((900, 700), [1, 2], seed=1)[0]))
    (photos / "page.jpg").write_bytes(turned(text_page(["Hello 2026"], (900, 300))[0], 6))
    (photos / "notes.txt").write_text("no photo")
    (photos / "@eaDir" / "preview.jpg").write_bytes(b"of the NAS")
    return photos


def ask(service: Service, *words: object, key: str = KEY) -> tuple[int, str, str]:
    ended = run_command({}, *words, "--url", service.url, "--key", key)
    return ended.returncode, ended.stdout, ended.stderr


def test_the_client_has_types(service: Service, folder: Path) -> None:
    client = Client.at(f"{service.url}/", KEY)
    assert client.check()["result"] == "pass"
    lines = client.ocr((folder / "page.jpg").read_bytes())
    assert "".join(line.text for line in lines).replace(" ", "") == "Hello2026"
    assert all(line.score > 0.9 and line.box[2] > line.box[3] for line in lines)
    faces = client.faces((folder / "people.jpg").read_bytes())
    assert [len(face.embedding) for face in faces] == [512, 512]
    vector = client.clip((folder / "people.jpg").read_bytes())
    assert sum(number * number for number in vector) == pytest.approx(1, abs=1e-3)
    assert len(client.clip_text("red")) == len(vector)


@pytest.mark.parametrize(
    ("key", "photo", "status", "words"),
    [("wrong", b"x", 401, "Invalid API key"), (KEY, b"x", 200, "not a photo"), (KEY, b"", 200, "empty")],
)
def test_what_went_wrong_is_told(service: Service, key: str, photo: bytes, status: int, words: str) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        Client.at(service.url, key).ocr(photo)
    assert caught.value.status == status


def test_a_service_that_is_not_there_is_told() -> None:
    with pytest.raises(ApiError, match="does not answer") as caught:
        Client.at(f"http://127.0.0.1:{free_port()}", KEY).check()
    assert caught.value.status == 0


def test_a_folder_is_read_photo_by_photo(service: Service, folder: Path, tmp_path: Path) -> None:
    status, table, _ = ask(service, "ocr", folder, "--draw", tmp_path / "drawn")
    assert status == 0
    assert "Hello" in table
    assert table.count(".jpg") == 2
    with Image.open(tmp_path / "drawn" / "page.jpg") as drawn:
        assert drawn.size == (900, 300), "as people see it"
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    assert ((pixels[:, :, 0] > 200) & (pixels[:, :, 1:].max(axis=2) < 80)).sum() > 100


def test_everything_is_there_as_json_too(service: Service, folder: Path) -> None:
    _, told, _ = ask(service, "faces", folder / "people.jpg", "--json")
    ((path, faces),) = json.loads(told).items()
    assert path.endswith("people.jpg")
    assert {"score", "box", "embedding"} == faces[0].keys()
    _, told, _ = ask(service, "check", "--json")
    assert json.loads(told)["result"] == "pass"


def test_words_are_ranked_against_a_photo(service: Service, tmp_path: Path) -> None:
    (tmp_path / "red.jpg").write_bytes(jpeg(colour_photo("red", (640, 480))))
    _, table, _ = ask(service, "clip", tmp_path / "red.jpg", "--word", "blue", "--word", "红色")
    assert table.index("红色") < table.index("blue")


def test_one_photo_that_fails_does_not_keep_the_others_from_being_read(service: Service, folder: Path) -> None:
    (folder / "bad.jpg").write_bytes(b"no photo")
    status, table, _ = ask(service, "ocr", folder)
    assert status == 1
    assert "not a photo" in table
    assert "Hello" in table


def test_with_a_wrong_key_the_first_answer_is_the_last(service: Service, folder: Path) -> None:
    status, table, _ = ask(service, "ocr", folder, key="wrong")
    assert status == 1
    assert table.count("Invalid API key") == 1
