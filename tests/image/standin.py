# SPDX-License-Identifier: AGPL-3.0-only
"""Builds an image with the layout and the names of upstream's, where upstream's cannot be had: all but its models' code
is real. `python tests/image/standin.py TAG [--changed]`; needs root, Docker, debootstrap and pip."""

import argparse
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

SOURCE = Path(__file__).with_name("base")
OS = "mt-photos-ml-standin-os:1"
RAPIDOCR = "rapidocr==3.6.*"
UNNEEDED = ("usr/share/doc", "usr/share/locale", "usr/share/man", "var/cache/apt", "var/lib/apt/lists")


def build(tag: str, *, changed: bool = False) -> None:
    """Make the image `tag` for this machine's platform. `changed`: the next version of upstream, whose `load` has a new
    name. The first call downloads; what it makes is kept as images, and the later ones take seconds. Raises
    CalledProcessError, with the output in it, where a tool fails."""
    libraries = _libraries()
    with tempfile.TemporaryDirectory() as temporary:
        context = Path(temporary, "context")
        shutil.copytree(SOURCE, context, ignore=shutil.ignore_patterns("__pycache__"))
        if changed:
            main = context / "immich_ml" / "main.py"
            text, renamed = re.subn(r"(?<![.\w])load\(", "load_model(", main.read_text())
            assert renamed > 1, "main.py has no load"
            main.write_text(text)
        _docker_build(context, tag, LIBRARIES=libraries)


def _os() -> str:
    def make(folder: Path) -> None:
        root, archive = folder / "os", folder / "os.tar"
        _run("debootstrap", "--variant=minbase", "--include=python3,tini", "bookworm", root)
        unneeded = [f"--exclude=./{path}/*" for path in UNNEEDED]
        _run("tar", "-C", root, *unneeded, "-cf", archive, ".")
        _run("docker", "import", archive, OS)

    return _kept(OS, make)


def _libraries() -> str:
    recipe = (SOURCE / "requirements.txt").read_bytes() + (SOURCE / "libraries.Dockerfile").read_bytes()
    tag = f"mt-photos-ml-standin-libraries:{sha256(recipe + RAPIDOCR.encode() + OS.encode()).hexdigest()[:12]}"

    def make(folder: Path) -> None:
        base, libraries = _os(), folder / "libraries"
        # for Debian 12's Python and C library, whatever this machine has
        abis = ["manylinux2014", *(f"manylinux_2_{minor}" for minor in range(17, 37))]
        target = ["--python-version=3.11", "--implementation=cp", "--only-binary=:all:", "--no-compile"]
        target += [f"--platform={abi}_{platform.machine()}" for abi in abis]
        pip = [sys.executable, "-m", "pip", "install", *target]
        _run(*pip, "--target", libraries, "-r", SOURCE / "requirements.txt")
        _run(*pip, "--target", folder / "rapidocr", "--no-deps", RAPIDOCR)
        shutil.copytree(folder / "rapidocr", libraries, dirs_exist_ok=True)
        shutil.rmtree(libraries / "bin")  # their first lines name this machine's Python
        shutil.copy(SOURCE / "libraries.Dockerfile", folder / "Dockerfile")
        _docker_build(folder, tag, OS=base)

    return _kept(tag, make)


def _kept(tag: str, make: Callable[[Path], None]) -> str:
    """The image's tag; where there is none yet, `make` is given a folder to make it in."""
    if subprocess.run(["docker", "image", "inspect", tag], capture_output=True, check=False).returncode != 0:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder))
    return tag


def _docker_build(context: Path, tag: str, **arguments: str) -> None:
    given = [part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")]
    _run("docker", "build", "--tag", tag, *given, context)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the stand-in for upstream's image.")
    parser.add_argument("tag")
    parser.add_argument("--changed", action="store_true", help="the next version, in which a name has changed")
    options = parser.parse_args()
    try:
        build(options.tag, changed=options.changed)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error}\n{error.stdout}")
