# SPDX-License-Identifier: AGPL-3.0-only
"""The Makefile: every target exists once, and `make help` lists it."""

import re
import subprocess

from scripts.upstream import ROOT


def make(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)


def test_a_target_does_something_is_written_once_and_named_by_help() -> None:
    """make warns of a target that is defined twice, but not of a phony one that is never defined."""
    targets = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[0].split()
    would = make("--dry-run", *targets)
    assert (would.stderr, "Nothing to be done" in would.stdout) == ("", False)
    named = re.findall(r"^make (\S+)", make("help").stdout, re.M)
    assert {*named, "help", "upgrade", "uninstall", "clean"} == set(targets)
