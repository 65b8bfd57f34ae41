# SPDX-License-Identifier: AGPL-3.0-only
"""Installs, upgrades and removes the service as a systemd unit: `make install`, `make upgrade`, `make uninstall`."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from .upstream import ROOT

TEMPLATE = ROOT / "deploy" / "systemd" / "mt-photos-ml.service"
NAME = "mt-photos-ml"
_SETTINGS = """# Settings of mt-photos-ml, one per line; docs/settings.md lists all of them.
# After a change: systemctl restart mt-photos-ml
#API_AUTH_KEY=a key of your own
#HF_ENDPOINT=https://hf-mirror.com
"""


def unit(folder: Path) -> str:
    """The unit for a checkout in this folder, with the graphics groups that this machine has."""
    groups = subprocess.run(["getent", "group", "video", "render"], capture_output=True, text=True, check=False).stdout
    there = " ".join(line.partition(":")[0] for line in groups.splitlines())
    lines = TEMPLATE.read_text().replace("FOLDER/", f"{folder}/")
    wanted = f"SupplementaryGroups={there}\n" if there else ""
    return re.sub(r"^SupplementaryGroups=.*\n", wanted, lines, flags=re.MULTILINE)


def install(root: Path) -> None:
    where, settings = root / f"etc/systemd/system/{NAME}.service", root / f"etc/{NAME}.env"
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_text(unit(ROOT))
    if not settings.exists():
        settings.write_text(_SETTINGS)
        settings.chmod(0o600)  # it may hold the key
    print(f"{where} is installed; settings are in {settings}")
    _systemctl(root, ["daemon-reload"], ["enable", "--now", NAME])


def upgrade(root: Path) -> None:
    """After `git pull` and an update of the libraries: installs the current unit and restarts the service."""
    install(root)
    _systemctl(root, ["restart", NAME])


def uninstall(root: Path) -> None:
    _systemctl(root, ["disable", "--now", NAME])
    (root / f"etc/systemd/system/{NAME}.service").unlink(missing_ok=True)
    _systemctl(root, ["daemon-reload"])
    print(f"removed; the settings in {root / f'etc/{NAME}.env'} and the models in {root / f'var/lib/{NAME}'} are kept")


def _systemctl(root: Path, *commands: list[str]) -> None:
    if root != Path("/"):
        return
    if not Path("/run/systemd/system").exists():
        sys.exit("systemd is not running on this machine")
    for command in commands:
        subprocess.run(["systemctl", *command], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.service", description=__doc__)
    parser.add_argument("what", choices=("install", "upgrade", "uninstall"))
    parser.add_argument("--root", type=Path, default=Path("/"), help="install below this folder (packages, tests)")
    options = parser.parse_args()
    if options.root == Path("/") and os.geteuid() != 0:
        sys.exit("this needs root: sudo make " + options.what)
    {"install": install, "upgrade": upgrade, "uninstall": uninstall}[options.what](options.root)


if __name__ == "__main__":
    main()
