# SPDX-License-Identifier: AGPL-3.0-only
"""Reads `docker run` lines, so that those of the READMEs can be checked where the image is not."""

import argparse
import re
from pathlib import Path

from mt_photos_ml.settings import Settings
from scripts.upstream import Upstream, our_version

ROOT = Path(__file__).parents[1]
REPOSITORY = "devfox101/mt-photos-ml"

_run = argparse.ArgumentParser(prog="docker run", allow_abbrev=False, exit_on_error=False)
_run.add_argument("-d", action="store_true", required=True)
_run.add_argument("--name", required=True)
_run.add_argument("--restart", required=True)
_run.add_argument("-p", dest="ports", action="append", required=True)
_run.add_argument("-e", dest="settings", action="append", default=[])
_run.add_argument("-v", dest="volumes", action="append", required=True)
_run.add_argument("--device", dest="devices", action="append", default=[])
_run.add_argument("--gpus")
_run.add_argument("--group-add", dest="groups", action="append", default=[])
_run.add_argument("--security-opt", dest="security", action="append", default=[])
_run.add_argument("--user")
_run.add_argument("--read-only", action="store_true")
_run.add_argument("--tmpfs", action="append", default=[])
_run.add_argument("--cap-drop", action="append", default=[])
_run.add_argument("image")


def read_run(words: list[str]) -> argparse.Namespace:
    """The options of a `docker run` line. Raises argparse.ArgumentError or SystemExit for others than ours use."""
    assert words[:2] == ["docker", "run"]
    return _run.parse_args(words[2:])


def images() -> dict[str, str]:
    """What is published under the tags that move, and the variant of each."""
    _, upstream = our_version()
    return {f"{REPOSITORY}:{upstream}{base.suffix}": base.variant for base in Upstream.load().bases}


def check_run(words: list[str]) -> None:
    """That the line starts an image of ours, with settings that there are, so that MT Photos can reach it."""
    run = read_run(words)
    assert run.image in images()
    assert run.ports == ["8060:3003"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "EXPOSE 3003" in dockerfile
    assert [volume.split(":")[1] for volume in run.volumes][0] == "/cache"
    known = {str(field.validation_alias) for field in Settings.model_fields.values()}
    Settings.model_validate(given := dict(setting.split("=", 1) for setting in run.settings))
    assert given.keys() <= known
    assert not run.read_only or run.tmpfs == ["/tmp"]
    assert run.user is None or re.fullmatch(r"\d+:\d+", run.user)
