# SPDX-License-Identifier: AGPL-3.0-only
"""The systemd unit: systemd accepts it, and the scripts install, upgrade and remove it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mt_photos_ml.server.connection import MOST_CONNECTIONS
from mt_photos_ml.settings import Settings

ROOT = Path(__file__).parents[2]
UNIT, ENVIRONMENT = "etc/systemd/system/mt-photos-ml.service", "etc/mt-photos-ml.env"


def service(what: str, root: Path) -> str:
    command = [sys.executable, "-m", "scripts.service", what, "--root", str(root)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_it_is_installed_upgraded_and_removed_and_the_settings_stay(tmp_path: Path) -> None:
    assert "is installed" in service("install", tmp_path)
    assert f"ExecStart={ROOT}/.venv/bin/mt-photos-ml serve\n" in (tmp_path / UNIT).read_text()
    assert (tmp_path / ENVIRONMENT).stat().st_mode & 0o777 == 0o600
    (tmp_path / ENVIRONMENT).write_text("TASKS=ocr\n")
    (tmp_path / UNIT).write_text("an older one")
    service("upgrade", tmp_path)
    assert "ExecStart" in (tmp_path / UNIT).read_text()
    assert (tmp_path / ENVIRONMENT).read_text() == "TASKS=ocr\n"
    assert "are kept" in service("uninstall", tmp_path)
    assert not (tmp_path / UNIT).exists()
    assert (tmp_path / ENVIRONMENT).exists()


def test_the_unit_allows_enough_file_descriptors_for_all_connections() -> None:
    (most,) = re.findall(
        r"^LimitNOFILE=(\d+)$", (ROOT / "deploy/systemd/mt-photos-ml.service").read_text(), re.MULTILINE
    )
    assert int(most) >= 2 * MOST_CONNECTIONS, "only half of the descriptors are for connections"


def test_the_settings_file_names_only_our_settings(tmp_path: Path) -> None:
    service("install", tmp_path)
    known = {str(field.validation_alias) for field in Settings.model_fields.values()}
    lines = (tmp_path / ENVIRONMENT).read_text().splitlines()
    assert {line.lstrip("#").partition("=")[0] for line in lines if "=" in line} <= known


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd on this machine")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    service("install", tmp_path)
    unit = tmp_path / UNIT
    there = shutil.which("true") or "/bin/true"  # systemd checks that the program exists
    unit.write_text(unit.read_text().replace(f"{ROOT}/.venv/bin/mt-photos-ml", there))
    ended = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    said = [line for line in ended.stderr.splitlines() if "mt-photos-ml" in line]
    assert (ended.returncode, said) == (0, [])
