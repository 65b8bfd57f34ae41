# SPDX-License-Identifier: AGPL-3.0-only
"""Transfers: resumed after a break, ended if no bytes come, refused if the bytes are wrong."""

import errno
import re
from contextlib import nullcontext
from pathlib import Path

import pytest

from hub_files import NAME, VISUAL, WEIGHTS, stage
from hub_server import HubServer
from mt_photos_ml.models import network, transfer
from mt_photos_ml.models.catalog import CLIP
from mt_photos_ml.models.hub import DownloadError, Hub
from mt_photos_ml.models.network import SourceError
from mt_photos_ml.models.transfer import RemoteFile

pytestmark = pytest.mark.usefixtures("impatient")


def why(cache: Path, server: HubServer) -> str:
    """The reason in the message of a download that fails."""
    with pytest.raises(DownloadError) as raised:
        Hub(cache, server.endpoint).fetch(VISUAL)
    found = re.search(rf"\({re.escape(server.endpoint)}: (.*?)\)\. Set HF_ENDPOINT", str(raised.value))
    assert found, raised.value
    return found[1]


def broke_off(why: str) -> str:
    return f"visual/model.onnx broke off 3 times in a row: {why}"


@pytest.mark.parametrize(
    ("fault", "ranges"),
    [
        ({"cuts": 2}, ["bytes=100000-", "bytes=200000-"]),
        ({"stalls": 1}, ["bytes=100000-"]),
        ({"cuts": 1, "ignores_ranges": True}, ["bytes=100000-"]),
        ({"cuts": 1, "sizes": False}, ["bytes=100000-"]),
    ],
)
def test_a_transfer_that_breaks_off_resumes_where_it_ended(
    server: HubServer, tmp_path: Path, fault: dict[str, object], ranges: list[str]
) -> None:
    vars(server).update(fault, after=100_000)
    assert Hub(tmp_path, server.endpoint).fetch(VISUAL).read_bytes() == WEIGHTS
    assert server.ranges == ranges


def test_the_next_run_or_mirror_resumes_where_an_interrupted_one_ended(
    server: HubServer, other: HubServer, tmp_path: Path
) -> None:
    server.cuts, server.after = 2 * transfer.TRIES, 20_000
    assert why(tmp_path, server) == broke_off("it sent 60000 of 300000 bytes")
    assert VISUAL.missing(tmp_path)
    assert Hub(tmp_path, endpoints=[server.endpoint, other.endpoint]).fetch(VISUAL).read_bytes() == WEIGHTS
    assert server.ranges[2:] == ["bytes=60000-", "bytes=80000-", "bytes=100000-"]
    assert other.ranges == ["bytes=120000-"]
    assert not (tmp_path / CLIP / NAME / ".partial").exists()


@pytest.mark.parametrize(
    ("length", "sizes", "ranges"),
    [(1000, True, ["bytes=1000-"]), (400_000, True, []), (400_000, False, ["bytes=400000-"])],  # the last gets a 416
)
def test_a_damaged_partial_file_is_downloaded_again(
    server: HubServer, tmp_path: Path, length: int, sizes: bool, ranges: list[str]
) -> None:
    server.sizes = sizes
    stage(tmp_path, VISUAL, b"x" * length)
    assert Hub(tmp_path, server.endpoint).fetch(VISUAL).read_bytes() == WEIGHTS
    assert server.ranges == ranges


def test_a_reply_with_the_wrong_range_is_rejected(server: HubServer, tmp_path: Path) -> None:
    server.shifts = True
    stage(tmp_path, VISUAL, WEIGHTS[:1000])
    assert why(tmp_path, server) == broke_off("it sent another range than was asked for")


@pytest.mark.parametrize(("claimed", "left"), [(400_000, 300_000), (200_000, 0)])
def test_a_file_that_is_longer_or_shorter_than_its_size_is_rejected(
    server: HubServer, tmp_path: Path, claimed: int, left: int
) -> None:
    server.ignores_ranges = True
    server.claimed["visual/model.onnx"] = claimed
    assert why(tmp_path, server) == broke_off(f"it sent 300000 of {claimed} bytes")
    assert (tmp_path / CLIP / NAME / ".partial" / "visual" / "visual" / "model.onnx").stat().st_size == left


def test_a_transfer_that_always_stalls_fails(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "STALL_SECONDS", 0.2)
    server.stalls, server.after = 99, 1000
    assert why(tmp_path, server) == broke_off("no data for 0.2 s")


@pytest.mark.parametrize(
    ("after", "cuts", "ends"), [(0, 2, True), (0, 3, False), (999_999, 3, False), (1_000_000, 4, True)]
)
def test_a_download_fails_after_three_nearly_empty_transfers_in_a_row(
    server: HubServer, tmp_path: Path, after: int, cuts: int, ends: bool
) -> None:
    server.release["a.onnx"] = bytes(4_500_000)
    server.after, server.cuts = after, cuts
    file = RemoteFile("a/file", f"{server.release_address}/a.onnx", None, None)
    with nullcontext() if ends else pytest.raises(SourceError, match=r"^a/file broke off 3 times in a row: "):
        transfer.download(file, tmp_path / "a", lambda: None)


def test_a_server_that_answers_with_an_error_is_not_retried(server: HubServer, tmp_path: Path) -> None:
    server.no_range = True
    assert why(tmp_path, server) == "HTTP 416 Requested Range Not Satisfiable"
    assert len(server.sent) == 1


def test_errors_of_the_disk_are_raised_unchanged(server: HubServer, tmp_path: Path) -> None:
    server.release["a"] = WEIGHTS
    file = RemoteFile("a", f"{server.release_address}/a", None, None)
    with pytest.raises(IsADirectoryError):
        transfer.download(file, tmp_path, lambda: None)

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left on device"):
        transfer.download(file, tmp_path / "a", full)


def test_no_hub_is_asked_if_hf_hub_offline_is_set(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "true")
    assert why(tmp_path, server) == "HF_HUB_OFFLINE is set"
    assert server.requests == []


def test_an_unknown_error_of_a_library_gets_a_message() -> None:
    with pytest.raises(SourceError, match=r"no usable answer \(ValueError\)"), network.translate_source_errors():
        raise ValueError("of a library")
