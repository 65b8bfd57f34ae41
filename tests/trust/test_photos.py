# SPDX-License-Identifier: AGPL-3.0-only
"""Photos that were damaged in every way, sent to a service whose memory is capped: each is answered, in words, soon."""

import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from demo.__main__ import environment as demo_environment
from demo.pictures import colour_photo, text_page
from photos import IN_COLOUR, IN_GREY, chunk, encoded, jpeg, that_claims, turned
from service import KEY, Service, anonymous_mb, running
from trust.tally import count

CAP = 4 << 30
"""Bytes of address space that the service has: its libraries and models map 2 GB."""
SECONDS = 10
"""That an answer may take."""
ROUTES = ("/clip/img", "/represent", "/ocr")
SAID = {
    "the file is empty",
    "the file is not a photo, or its beginning is damaged",
    "the photo is damaged",
    "height or width out of range",
}
"""What is said of photos: no library's own words."""


def corpus() -> list[bytes]:
    """A small photo of every kind, and of the odd ones that have a way of their own through a decoder."""
    photo = colour_photo("orange", (160, 120))
    return [
        *(encode(photo) for encode in (*IN_COLOUR.values(), *IN_GREY.values())),
        *(turned(photo, orientation) for orientation in (3, 6, 8)),
        *(turned(photo, 6, "PNG"), jpeg(text_page(["One line"], (320, 120))[0])),
        *(that_claims(kind, 9_000, 9_000) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF")),
    ]


CORPUS = corpus()
BIG = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
"""Numbers that lies in headers are made of."""

place = st.floats(0, 1, exclude_max=True)
change = st.one_of(
    st.tuples(st.just("flip"), place, st.integers(0, 7)),
    st.tuples(st.just("byte"), place, st.integers(0, 255)),
    st.tuples(st.just("cut"), place, st.just(0)),
    st.tuples(st.just("number"), place, st.integers(0, 4 * len(BIG) - 1)),
    st.tuples(st.just("remove"), place, st.integers(1, 2000)),
    st.tuples(st.just("repeat"), place, st.integers(1, 2000)),
    st.tuples(st.just("nest"), place, st.integers(0, len(CORPUS) - 1)),
)
early = st.one_of(change, change.map(lambda c: (c[0], c[1] * 0.03, c[2])))
"""Half of the changes are in the header, where most of what a decoder believes stands."""


def changed(data: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    """The photo with these changes made to it, one after the other."""
    for how, where, value in changes:
        at = int(where * len(data))
        match how:
            case "flip" if data:
                data = data[:at] + bytes([data[at] ^ 1 << value]) + data[at + 1 :]
            case "byte":
                data = data[:at] + bytes([value]) + data[at + 1 :]
            case "cut":
                data = data[:at]
            case "number":
                width = (2, 4)[value % 2]
                number = BIG[value // 4] & ((1 << 8 * width) - 1)
                data = data[:at] + number.to_bytes(width, "little" if value // 2 % 2 else "big") + data[at + width :]
            case "remove":
                data = data[:at] + data[at + value :]
            case "repeat":
                data = data[: at + value] + data[at:]
            case "nest":
                data = data[:at] + CORPUS[value] + data[at:]
    return data


@pytest.fixture(scope="module")
def capped(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("capped")
    limit = ("prlimit", f"--as={CAP}")
    with running(folder, {**demo_environment(cache), "PREPARE_MODELS": "false"}, wrapper=limit) as service:
        yield service


def test_no_damaged_photo_ends_the_service_hangs_it_or_leaves_anything_behind(capped: Service, long: bool) -> None:
    with httpx.Client(base_url=capped.url, headers={"api-key": KEY}, timeout=SECONDS) as client:

        def check(data: bytes, route: str) -> None:
            count("inputs tried")
            answer = client.post(route, files={"file": data})
            told = answer.json()
            assert answer.status_code in (200, 503)
            if "msg" in told:
                assert told["result"] == []
                assert told["msg"] in SAID or (answer.status_code == 503 and "memory" in told["msg"]), told
            else:
                assert answer.status_code == 200

        for data in CORPUS:
            for route in ROUTES:
                check(data, route)
        client.post("/restart")
        pid, before = capped.pid, anonymous_mb(capped.pid)

        @settings(
            max_examples=20_000 if long else 1_200,
            deadline=None,
            database=None,
            derandomize=not long,
            print_blob=True,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.sampled_from(CORPUS), st.lists(early, min_size=1, max_size=6), st.sampled_from(ROUTES))
        def fuzz(data: bytes, changes: list[tuple[str, float, int]], route: str) -> None:
            check(changed(data, changes), route)

        fuzz()
        assert capped.pid == pid, "the service was started again"
        client.post("/restart")
        assert anonymous_mb(pid) - before < 60
    assert "Traceback" not in capped.log.read_text()


def bombs() -> dict[str, bytes]:
    """Small files that would be large pictures, or large texts in them."""
    plain, small = Image.new("RGB", (10_000, 10_000)), encoded(Image.new("RGB", (8, 8)), "PNG")
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(900_000_000), 9))
    return {
        "a png of a hundred megapixels": encoded(plain, "PNG"),
        "a gif of a hundred megapixels": encoded(Image.new("P", plain.size), "GIF"),
        "a tiff of a hundred megapixels": encoded(plain, "TIFF", compression="tiff_lzw"),
        "a jpeg of a hundred megapixels": encoded(plain, "JPEG"),
        "a png of sixteen bits": encoded(Image.new("I;16", plain.size), "PNG"),
        "a png with a text that swells": small[:33] + text + small[33:],
        "a jpeg inside a jpeg": jpeg(colour_photo("red", (64, 64))) * 2000,
    }


def test_small_files_that_would_be_large_stay_within_the_memory(capped: Service) -> None:
    with httpx.Client(base_url=capped.url, headers={"api-key": KEY}, timeout=60) as client:
        pid = capped.pid
        for name, data in bombs().items():
            for route in ROUTES:
                answer = client.post(route, files={"file": data})
                count("inputs tried")
                assert answer.status_code == 200 or (answer.status_code == 503 and answer.headers["retry-after"]), name
        assert capped.pid == pid
        client.post("/restart")
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        assert peak / 1000 < 2500
