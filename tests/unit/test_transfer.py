# SPDX-License-Identifier: AGPL-3.0-only
"""Transfers: resumed where they broke off, given up where nothing comes, refused where the bytes are others."""

import time
from pathlib import Path

import pytest

from hub_files import NAME, REPOSITORY, VISUAL, WEIGHTS, files, nobody_listens, stage
from hub_server import HubServer
from mt_photos_ml.models import transfer
from mt_photos_ml.models.catalog import CLIP
from mt_photos_ml.models.hub import DownloadError, Hub

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


@pytest.mark.parametrize("rest", [b"x" * 1000, b"x" * 300_000, b"x" * 400_000], ids=["half", "as long", "longer"])
def test_a_bad_leftover_is_fetched_anew(server: HubServer, tmp_path: Path, rest: bytes) -> None:
    stage(tmp_path, VISUAL, rest)
    assert Hub(tmp_path, server.endpoint).fetch(VISUAL).read_bytes() == WEIGHTS


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
