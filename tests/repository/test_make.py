# SPDX-License-Identifier: AGPL-3.0-only
"""The Makefile: each target is one, and `make help` names it."""

import re
import subprocess

import pytest

from scripts.upstream import ROOT

(PHONY,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)


def make(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)


@pytest.mark.parametrize("target", PHONY.split())
def test_a_target_does_something_and_is_written_once(target: str) -> None:
    """make warns of a target that is written twice, and is content with one that is only named."""
    would = make("--dry-run", target)
    assert would.stderr == ""
    assert "Nothing to be done" not in would.stdout


def test_help_names_every_target() -> None:
    named = re.findall(r"^make (\S+)", make("help").stdout, re.MULTILINE)
    assert {*named, "help", "upgrade", "uninstall", "clean"} == set(PHONY.split())
