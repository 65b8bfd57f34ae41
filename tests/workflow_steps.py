# SPDX-License-Identifier: AGPL-3.0-only
"""Runs steps of the workflows like a GitHub runner, with a stand-in for the gh command."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS: dict[str, dict[Any, Any]] = {
    path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").iterdir()
}
JOBS: dict[str, dict[str, dict[str, Any]]] = {name: workflow["jobs"] for name, workflow in WORKFLOWS.items()}
"""The jobs, by workflow and job name."""

_GH = """#!/bin/sh
echo "$@" >> "$GH_CALLS"
for last; do :; done
case "$*" in
  "api repos/immich-app/immich/releases/latest"*) echo "$GH_NEWEST" ;;
  "pr list"*"--state closed"*) echo "$GH_CLOSED" ;;
  "pr list"*"--state open"*) echo "$GH_OPEN" ;;
  "issue list"*) echo "$GH_ISSUE" ;;
  *"--body-file"* | *"--notes-file"*) cat "$last" >> "$GH_CALLS" ;;
  *"--input -"*) cat >> "$GH_CALLS" ;;
esac
"""


def step(job: dict[str, Any], title: str) -> str:
    """The script of the job's step with this name."""
    return next(str(step["run"]) for step in job["steps"] if step.get("name") == title)


def run(program: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs a step's script in folder/tree, with a `gh` that writes its arguments to folder/calls."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "gh").write_text(_GH)
    (tools / "gh").chmod(0o755)
    (tools / "python3").unlink(missing_ok=True)
    (tools / "python3").symlink_to(sys.executable)
    (folder / "output").write_text("")
    given = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "HOME": str(folder),
        "GITHUB_OUTPUT": str(folder / "output"),
        "GH_CALLS": str(folder / "calls"),
        "RUNNER_TEMP": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        **settings,
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", program]
    return subprocess.run(command, cwd=folder / "tree", env=given, capture_output=True, text=True, timeout=120)
