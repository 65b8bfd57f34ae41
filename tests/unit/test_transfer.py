# SPDX-License-Identifier: AGPL-3.0-only
"""Transfers: resumed where they broke off, given up where nothing comes, refused where the bytes are others."""

import errno
import re
import ssl
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from urllib.error import URLError

import pytest

from hub_files import NAME, REPOSITORY, VISUAL, WEIGHTS, files, nobody_listens, stage
from hub_server import HubServer
from mt_photos_ml.models import transfer
from mt_photos_ml.models.catalog import CLIP
from mt_photos_ml.models.hub import DownloadError, Hub
from mt_photos_ml.models.transfer import RemoteFile, SourceError

pytestmark = pytest.mark.usefixtures("impatient")


def test_a_transfer_that_was_cut_goes_on_where_it_ended(server: HubServer, tmp_path: Path) -> None:
    server.cuts, server.after = 2, 100_000
    model = Hub(tmp_path, server.endpoint).fetch(VISUAL)
    assert server.ranges == ["bytes=100000-", "bytes=200000-"]
    assert model.read_bytes() == WEIGHTS


def test_a_transfer_that_goes_quiet_is_broken_off_and_goes_on(server: HubServer, tmp_path: Path) -> None:
    server.stalls, server.after = 1, 100_000
    began = time.monotonic()
    model = Hub(tmp_path, server.endpoint).fetch(VISUAL)
    assert server.ranges == ["bytes=100000-"]
    assert model.read_bytes() == WEIGHTS
    assert time.monotonic() - began < 15


def test_a_server_that_knows_no_ranges_sends_the_whole_again(server: HubServer, tmp_path: Path) -> None:
    server.ignores_ranges = True
    server.cuts, server.after = 1, 100_000
    assert Hub(tmp_path, server.endpoint).fetch(VISUAL).read_bytes() == WEIGHTS
    assert server.sent.count("visual/model.onnx") == 2


def test_the_next_run_goes_on_where_an_interrupted_one_ended(server: HubServer, tmp_path: Path) -> None:
    server.cuts, server.after = transfer.TRIES, 50_000
    hub = Hub(tmp_path, server.endpoint)
    with pytest.raises(DownloadError, match="broke off 3 times in a row"):
        hub.fetch(VISUAL)
    assert VISUAL.missing(tmp_path)

    assert hub.fetch(VISUAL).read_bytes() == WEIGHTS
    assert server.ranges[-1] == "bytes=150000-"
    assert not (tmp_path / CLIP / NAME / ".partial").exists()


def test_the_next_mirror_goes_on_with_what_the_first_one_sent(
    server: HubServer, other: HubServer, tmp_path: Path
) -> None:
    server.cuts, server.after = 99, 50_000
    model = Hub(tmp_path, endpoints=[server.endpoint, other.endpoint]).fetch(VISUAL)
    assert other.ranges == ["bytes=150000-"]
    assert model.read_bytes() == WEIGHTS


def test_half_a_file_is_not_taken_for_a_model(server: HubServer, tmp_path: Path) -> None:
    stage(tmp_path, VISUAL, WEIGHTS[:1000])
    with pytest.raises(DownloadError):
        Hub(tmp_path, nobody_listens()).fetch(VISUAL)
    assert VISUAL.missing(tmp_path)
    assert Hub(tmp_path, server.endpoint).fetch(VISUAL).read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("length", "ranges"),
    [(1, ["bytes=1-"]), (1000, ["bytes=1000-"]), (300_000, []), (400_000, [])],
    ids=["a byte", "half", "as long", "longer"],
)
def test_a_bad_leftover_is_fetched_anew(server: HubServer, tmp_path: Path, length: int, ranges: list[str]) -> None:
    stage(tmp_path, VISUAL, b"x" * length)
    assert Hub(tmp_path, server.endpoint).fetch(VISUAL).read_bytes() == WEIGHTS
    assert server.ranges == ranges


def test_a_leftover_that_is_longer_than_what_is_there_is_fetched_anew_where_nobody_told_the_size(
    server: HubServer, tmp_path: Path
) -> None:
    server.sizes = False
    stage(tmp_path, VISUAL, b"x" * 400_000)
    assert Hub(tmp_path, server.endpoint).fetch(VISUAL).read_bytes() == WEIGHTS
    assert server.ranges == ["bytes=400000-"]


def why(cache: Path, server: HubServer) -> str:
    """What is said of the model that can't be had, without what to do."""
    with pytest.raises(DownloadError) as raised:
        Hub(cache, server.endpoint).fetch(VISUAL)
    found = re.search(rf"\({re.escape(server.endpoint)}: (.*?)\)\. Let HF_ENDPOINT", str(raised.value))
    assert found, raised.value
    return found[1]


def broke_off(why: str) -> str:
    return f"visual/model.onnx broke off 3 times in a row, {why}"


def test_a_server_that_sends_another_piece_is_not_believed(server: HubServer, tmp_path: Path) -> None:
    server.shifts = True
    stage(tmp_path, VISUAL, WEIGHTS[:1000])
    assert why(tmp_path, server) == broke_off("it sent another piece than was asked for")


@pytest.mark.parametrize(("claimed", "left"), [(400_000, 300_000), (200_000, 0)])
def test_a_file_that_is_longer_or_shorter_than_was_told_is_not_taken(
    server: HubServer, tmp_path: Path, claimed: int, left: int
) -> None:
    server.ignores_ranges = True
    server.claimed["visual/model.onnx"] = claimed
    assert why(tmp_path, server) == broke_off(f"300000 of {claimed} bytes came")
    assert (tmp_path / CLIP / NAME / ".partial" / "visual" / "visual" / "model.onnx").stat().st_size == left


def test_a_transfer_that_always_goes_quiet_is_given_up(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "STALL_SECONDS", 0.2)
    server.stalls, server.after = 99, 1000
    assert why(tmp_path, server) == broke_off("no byte came for 0.2 s")


@pytest.mark.parametrize(
    ("brought", "ends"),
    [
        ([0, 0], True),
        ([0, 0, 0], False),
        ([999_999] * 3, False),
        ([1_000_000, 0, 0], True),
        ([1_000_000, 0, 0, 0], False),
        ([0, 0, 1_000_000, 0, 0], True),
        ([1_000_000] * 5, True),
    ],
)
def test_three_transfers_in_a_row_that_bring_next_to_nothing_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brought: list[int], ends: bool
) -> None:
    staged, left = tmp_path / "file", [*brought, -1]

    def receive(file: RemoteFile, staged: Path, on_bytes: Callable[[], None]) -> None:
        with staged.open("ab") as target:
            target.write(bytes(max(size := left.pop(0), 0)))
        if size >= 0:
            raise ConnectionResetError

    monkeypatch.setattr(transfer, "_receive", receive)
    told = pytest.raises(SourceError, match=r"^a/file broke off 3 times in a row, the connection was cut$")
    with nullcontext() if ends else told:
        transfer.download(RemoteFile("a/file", "", None, None), staged, lambda: None)
    assert (left == []) is ends


def test_a_server_that_answers_with_an_error_is_not_asked_again(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waits to ask again"))
    with pytest.raises(SourceError, match=r"^HTTP 404 Not Found$"):
        transfer.download(RemoteFile("a", f"{server.endpoint}/no", None, None), tmp_path / "a", lambda: None)


def test_a_server_that_finds_fault_with_a_range_that_nobody_asked_for_is_given_up(
    server: HubServer, other: HubServer, tmp_path: Path
) -> None:
    server.no_range = True
    model = Hub(tmp_path, endpoints=[server.endpoint, other.endpoint]).fetch(VISUAL)
    assert model.read_bytes() == WEIGHTS
    assert why(tmp_path / "other", server) == "HTTP 416 Requested Range Not Satisfiable"


def test_errors_of_the_disk_stay_what_they_are(server: HubServer, tmp_path: Path) -> None:
    server.release["a"] = WEIGHTS
    file = RemoteFile("a", f"{server.release_address}/a", None, None)
    with pytest.raises(IsADirectoryError):
        transfer.download(file, tmp_path, lambda: None)

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left on device"):
        transfer.download(file, tmp_path / "a", full)


def test_what_is_asked_for_a_file_says_who_asks(server: HubServer, tmp_path: Path) -> None:
    server.release["a"] = WEIGHTS
    transfer.download(RemoteFile("a", f"{server.release_address}/a", None, None), tmp_path / "a", lambda: None)
    assert server.said == {("User-Agent", "mt-photos-ml"), ("Authorization", None)}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("of a library"), "no usable answer (ValueError)"),
        (ssl.SSLError("handshake"), "no secure connection (TLS)"),
        (URLError(ConnectionRefusedError()), "no usable answer (URLError)"),
    ],
)
def test_why_an_endpoint_did_not_serve_is_said_in_words(error: Exception, words: str) -> None:
    with pytest.raises(SourceError) as raised, transfer.translate_source_errors():
        raise error
    assert str(raised.value) == words


def test_a_switch_of_huggingface_hub_is_named(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert why(tmp_path, server) == "HF_HUB_OFFLINE is set"


def test_bytes_with_another_checksum_are_refused(server: HubServer, tmp_path: Path) -> None:
    server.spoiled = True
    with pytest.raises(DownloadError, match="is not what was published"):
        Hub(tmp_path, server.endpoint).fetch(VISUAL)
    assert files(tmp_path / CLIP / NAME) & set(REPOSITORY) == set()


def test_after_a_mirror_with_spoiled_bytes_the_next_one_is_asked(
    server: HubServer, other: HubServer, tmp_path: Path
) -> None:
    server.spoiled = True
    model = Hub(tmp_path, endpoints=[server.endpoint, other.endpoint]).fetch(VISUAL)
    assert model.read_bytes() == WEIGHTS


def test_a_mirror_that_tells_no_sizes_serves_as_well(server: HubServer, tmp_path: Path) -> None:
    server.sizes = False
    server.cuts, server.after = 1, 100_000
    hub = Hub(tmp_path, server.endpoint)
    assert hub.fetch(VISUAL).read_bytes() == WEIGHTS
    assert hub.verify(VISUAL) is None
    assert hub.invalidate(VISUAL, VISUAL.files[:1]), "nobody said what the file should be: the next one may be better"
