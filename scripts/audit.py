# SPDX-License-Identifier: AGPL-3.0-only
"""Looks for known weaknesses in the libraries that the service runs on, by pip-audit. Fails where there is one that a
newer version mends; says so and goes on where the database can't be reached."""

import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("cpu", "heic", "ocr")
_SECONDS = 120


def libraries(name: str = "mt-photos-ml", extras: tuple[str, ...] = EXTRAS) -> dict[str, str]:
    """What is installed of the requirements of a distribution, and of theirs: versions by name."""
    found: dict[str, str] = {}
    for needed in map(Requirement, metadata.requires(name) or ()):
        marker = needed.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in (*extras, "")):
            continue
        found[canonicalize_name(needed.name)] = metadata.version(needed.name)
        found |= libraries(needed.name, tuple(needed.extras))
    return found


def main() -> int:
    used = libraries()
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder, "requirements.txt")
        listed.write_text("".join(f"{name}=={version}\n" for name, version in sorted(used.items())))
        options = [
            "--no-deps",
            "--disable-pip",
            "--format=json",
            "--progress-spinner=off",
            "--requirement",
            str(listed),
        ]
        command = [sys.executable, "-m", "pip_audit", *options]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
            told = json.loads(ended.stdout)["dependencies"]
        except (subprocess.TimeoutExpired, json.JSONDecodeError, KeyError):
            told = []
    looked_at = [library for library in told if "skip_reason" not in library]
    if not looked_at:
        print("audit: the database of weaknesses can't be reached here: not run")
        return 0
    weak = [(library, weakness) for library in looked_at for weakness in library["vulns"]]
    for library, weakness in weak:
        fixed = ", ".join(weakness["fix_versions"]) or "none yet"
        print(f"audit: {library['name']} {library['version']}: {weakness['id']}, mended in {fixed}")
    print(f"audit: {len(looked_at)} of {len(used)} libraries looked at, {len(weak)} known weaknesses")
    return int(any(weakness["fix_versions"] for _, weakness in weak))


if __name__ == "__main__":
    sys.exit(main())
