# SPDX-License-Identifier: AGPL-3.0-only
"""Photos that were damaged in every way, sent to a service with limited memory: each gets a plain message in time."""

import re
import struct
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
from photos import IN_COLOUR, IN_GREY, camera_raw, chunk, encoded, jpeg, that_claims, turned
from service import KEY, Service, anonymous_mb, running
from trust.tally import count

CAP = 4 << 30
"""The service's address space in bytes; its libraries and models map 2 GB."""
SECONDS = 60
"""How long a reply may take."""
ROUTES = ("/clip/img", "/represent", "/ocr")
SAID = {
    "the file is empty",
    "the file is not a photo, or its beginning is damaged",
    "the photo is damaged",
    "height or width out of range",
    "the photo is damaged, or of a kind that can't be read: save it with 8 bits a channel",
    "this camera RAW file has no preview that is large enough: send the photo as a JPEG",
}
"""All messages about bad photos, none of them a library's own. TIFF matches one more."""
TIFF = re.compile(r"a TIFF with [\w ,]+ can't be read: save it with 8 bits a channel")


def corpus() -> list[bytes]:
    """A small photo of every kind, and odd ones that take a path of their own through a decoder."""
    photo = colour_photo("orange", (160, 120))
    return [
        *(encode(photo) for encode in (*IN_COLOUR.values(), *IN_GREY.values())),
        *(turned(photo, orientation) for orientation in (3, 6, 8)),
        *(turned(photo, 6, "PNG"), jpeg(text_page(["One line"], (320, 120))[0])),
        camera_raw(jpeg(photo.resize((640, 480))), (2000, 1500), 6),
        *(that_claims(kind, 9_000, 9_000) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF")),
    ]


CORPUS = corpus()
NUMBERS = [
    struct.pack(form, number % most)
    for number in (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
    for form, most in (("<H", 1 << 16), (">H", 1 << 16), ("<I", 1 << 32), (">I", 1 << 32))
]
"""Numbers that make a header wrong, in the forms that headers use."""

place = st.floats(0, 1, exclude_max=True)
change = st.one_of(
    st.tuples(place, st.binary(min_size=1, max_size=1), st.just(1)),
    st.tuples(place, st.just(b""), st.sampled_from([1, 100, 2000, 1 << 30])),  # cut out, cut short
    st.tuples(place, st.sampled_from(NUMBERS), st.sampled_from([2, 4])),
    st.tuples(place, st.sampled_from(CORPUS), st.just(0)),
    st.tuples(place, st.just(b""), st.integers(-2000, -1)),  # repeats the bytes before it
)
early = st.one_of(change, change.map(lambda c: (c[0] * 0.03, c[1], c[2])))
"""Half of the changes are in the header, which decoders depend on most."""


def changed(data: bytes, changes: list[tuple[float, bytes, int]]) -> bytes:
    """The photo with these changes: where (a share of its length), the new bytes, and how many they replace."""
    for where, new, replaced in changes:
        at = int(where * len(data))
        data = data[:at] + new + data[max(at + replaced, 0) :]
    return data


@pytest.fixture(scope="module")
def capped(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("capped")
    limit = ("prlimit", f"--as={CAP}")
    with running(folder, {**demo_environment(cache), "PREPARE_MODELS": "false"}, wrapper=limit) as service:
        yield service


def test_no_damaged_photo_crashes_the_service_hangs_it_or_leaks_memory(capped: Service, long: bool) -> None:
    with httpx.Client(base_url=capped.url, headers={"api-key": KEY}, timeout=SECONDS) as client:

        def check(data: bytes, route: str) -> None:
            count("inputs tried")
            answer = client.post(route, files={"file": data})
            told = answer.json()
            assert answer.status_code in (200, 503)
            if "msg" in told:
                assert told["result"] == []
                assert (
                    told["msg"] in SAID
                    or TIFF.fullmatch(told["msg"])
                    or (answer.status_code == 503 and "memory" in told["msg"])
                ), told
            else:
                assert answer.status_code == 200

        for data in CORPUS:
            for route in ROUTES:
                check(data, route)
        client.post("/restart")
        pid, before = capped.pid, anonymous_mb(capped.pid)

        @settings(
            max_examples=20_000 if long else 800,
            deadline=None,
            database=None,
            derandomize=not long,
            print_blob=True,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.sampled_from(CORPUS), st.lists(early, min_size=1, max_size=6), st.sampled_from(ROUTES))
        def fuzz(data: bytes, changes: list[tuple[float, bytes, int]], route: str) -> None:
            check(changed(data, changes), route)

        fuzz()
        assert capped.pid == pid, "the worker was restarted"
        client.post("/restart")
        assert anonymous_mb(pid) - before < 60
    assert "Traceback" not in capped.log.read_text()


def bombs() -> dict[str, bytes]:
    """Small files that decode to large pictures or contain large texts."""
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


def test_decompression_bombs_stay_within_the_memory(capped: Service, long: bool) -> None:
    with httpx.Client(base_url=capped.url, headers={"api-key": KEY}, timeout=60) as client:
        pid = capped.pid
        for name, data in bombs().items():
            for route in ROUTES if name == "a png of a hundred megapixels" or long else ROUTES[-1:]:
                answer = client.post(route, files={"file": data})
                count("inputs tried")
                assert answer.status_code == 200 or (answer.status_code == 503 and answer.headers["retry-after"]), name
        assert capped.pid == pid
        client.post("/restart")
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        assert peak / 1000 < 2500
