# SPDX-License-Identifier: AGPL-3.0-only
"""Builds stand-ins for upstream's images: their package is written for the tests, everything else is real. Needs root,
Docker with buildx, apt-get, dpkg and pip."""

import platform as this_machine
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

BASE = Path(__file__).with_name("base")
RELEASES = {"v2.5.6": "bookworm", "v3.0.3": "bookworm", "v3.3.0": "trixie", "v3.4.0": "trixie"}
"""The releases that have a stand-in, and the Debian of their CPU variant."""
LATER = {"v3.4.0": ("v3.3.0", {"pillow": "13.0.0", "pillow-jxl-plugin": "1.3.8"})}
"""Releases whose lock is not known: a similar release, and the known differences from it."""
RUNTIMES = {"openvino": "onnxruntime-openvino==1.23.0", "cuda": "onnxruntime-gpu==1.23.2"}
"""The library that a variant has instead of onnxruntime, in v2.5.6."""
MALLOCS = {"bookworm": "libmimalloc2.0", "trixie": "libmimalloc3/trixie-backports"}
"""The Debian package of the malloc that upstream's images preload, except OpenVINO's."""
PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
PUBLISHED_AS_SOURCE = ("antlr4-python3-runtime", "easydict")
"""Libraries without a wheel in the index. They are pure Python, so any machine can build one."""
WITHOUT_A_WHEEL = {"3.13": ("kiwisolver", "watchfiles")}
"""Libraries that upstream compiles for this Python. They are left out, because neither we nor the stand-in use them."""
MACHINES = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}
UNUSED = ("albumentations", "cython", "fonttools", "matplotlib", "networkx", "scikit-image", "scikit-learn", "scipy")
"""Large libraries that neither we nor the stand-in import. Images for another platform leave them out."""
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGES = (
    *("base-files", "bash", "coreutils", "dash", "findutils", "grep", "libc-bin", "sed"),
    *("libgomp1", "libstdc++6", "python3", "python3-venv", "tini"),
)
"""Debian packages. They are unpacked but not configured, which would take minutes in emulation."""


def here() -> str:
    """The platform of this machine."""
    return next(platform for platform, machine in MACHINES.items() if machine == this_machine.machine())


def name(release: str, variant: str = "cpu", platform: str | None = None) -> str:
    """The image's name."""
    machine = "" if platform in (None, here()) else f"-{str(platform).partition('/')[2]}"
    return f"mt-photos-ml-standin:{release}{'' if variant == 'cpu' else '-' + variant}{machine}"


def build(release: str = "v2.5.6", variant: str = "cpu", platform: str | None = None) -> str:
    """Builds the image for this platform (default: this machine's) and returns its name. The first call downloads and
    keeps the results as images; later calls take seconds. Raises CalledProcessError if a tool fails."""
    platform, tag = platform or here(), name(release, variant, platform)
    debian = debian_of(release, variant)
    lines = lock(release, variant).splitlines(keepends=True)
    lines = [line for line in lines if platform == here() or line.partition("==")[0].lower() not in UNUSED]
    libraries = _libraries(debian, "".join(lines), platform)
    with tempfile.TemporaryDirectory() as temporary:
        context = Path(temporary, "context")
        lay_out(release, context)
        _docker_build(context, tag, platform, LIBRARIES=libraries, DEVICE=variant, target=stage(release, variant))
    return tag


def debian_of(release: str, variant: str) -> str:
    return "trixie" if variant == "openvino" else RELEASES[release]


def stage(release: str, variant: str) -> str:
    """The stage of base/Dockerfile, named after how this release and variant preload a malloc."""
    if variant in ("openvino", "rocm"):
        return "glibc"
    return {"bookworm": "by-variable", "trixie": "by-file"}[RELEASES[release]]


def lay_out(release: str, folder: Path) -> None:
    """Writes the stand-in's files below /usr/src: those of v2.5.6, with the lines that the release changed."""
    ignored = shutil.ignore_patterns("__pycache__", "*.txt", "*.toml")
    shutil.copytree(BASE, folder, ignore=ignored, dirs_exist_ok=True)
    later = tomllib.loads((BASE / "later.toml").read_text())
    for name in list(RELEASES)[1 : list(RELEASES).index(release) + 1]:
        for line in later.get(name, ()):
            path = folder / line["file"]
            assert path.read_text().count(line["old"]) == 1, f"{path} does not contain {line['old']!r} exactly once"
            path.write_text(path.read_text().replace(line["old"], line["new"]))


def lay_out_tiny(release: str, variant: str, folder: Path) -> None:
    """Writes the build context of an image that is only inspected: the files, and libraries without content."""
    lay_out(release, folder)
    python = PYTHONS[RELEASES[release]]
    libraries = folder / "venv/lib" / f"python{python}" / "site-packages"
    for line in lock(release, variant).splitlines():
        if "==" in line:
            (libraries / f"{line.replace('==', '-')}.dist-info").mkdir(parents=True)
            (libraries / f"{line.replace('==', '-')}.dist-info/METADATA").touch()
    (folder / "venv/pyvenv.cfg").write_text(f"version = {python}.0\n")
    recipe = (BASE / "Dockerfile").read_text().replace("FROM ${LIBRARIES}", "FROM scratch")
    (folder / "Dockerfile").write_text(recipe.replace("COPY immich_ml", "COPY venv /opt/venv\nCOPY immich_ml"))


def lock(release: str, variant: str = "cpu", runtime: str | None = None) -> str:
    """The libraries as requirements, one per line. runtime: replaces the variant's build of onnxruntime."""
    like, others = LATER.get(release, (release, {}))
    lines = (BASE / f"{like}.txt").read_text()
    for name, version in others.items():
        lines = re.sub(rf"^{name}==.*\n", "", lines, flags=re.MULTILINE) + f"{name}=={version}\n"
    runtime = runtime or RUNTIMES.get(variant)
    return re.sub(r"^onnxruntime==.*$", runtime, lines, flags=re.MULTILINE) if runtime else lines


def _os(debian: str, platform: str) -> str:
    packages = [*PACKAGES, MALLOCS[debian]]
    tag = f"mt-photos-ml-standin-os:{_hash(debian, platform, *packages)}"

    def make(folder: Path) -> None:
        root, machine = folder / "os", platform.partition("/")[2]
        for name in ("bin", "sbin", "lib", "lib64"):
            (root / "usr" / name).mkdir(parents=True)
            (root / name).symlink_to(f"usr/{name}")
        mirror = f"deb [signed-by={KEYRING}] {_mirror()}"
        (folder / "sources.list").write_text(f"{mirror} {debian} main\n{mirror} {debian}-backports main\n")
        options = {
            "Dir::Etc::SourceList": folder / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State": folder / "state",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": folder / "cache",
            "APT::Architecture": machine,
            "APT::Architectures": machine,
            "APT::Sandbox::User": "root",
        }
        apt = ["apt-get", *(f"-o{name}={value}" for name, value in options.items())]
        (folder / "state").mkdir()
        (folder / "cache").mkdir()
        _run(*apt, "update")
        _run(*apt, "install", "--download-only", "--yes", "--no-install-recommends", *packages)
        for package in (folder / "cache" / "archives").glob("*.deb"):
            data = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, stdout=subprocess.PIPE).stdout
            subprocess.run(["tar", "-C", root, "-x", "--keep-directory-symlink"], input=data, check=True)
        if libraries := sorted((root / "usr/lib").glob("*/libmimalloc.so.*")):
            (root / "usr/lib" / libraries[0].name).symlink_to("/" + str(libraries[0].relative_to(root)))
        for unneeded in ("doc", "locale", "man"):
            shutil.rmtree(root / "usr/share" / unneeded, ignore_errors=True)
        _run("tar", "-C", root, "-cf", folder / "os.tar", ".")
        _run("docker", "import", f"--platform={platform}", folder / "os.tar", tag)

    return _kept(tag, make)


def _mirror() -> str:
    """The address of a Debian mirror: apt's, or on other systems debootstrap's."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if found := re.search(r"^\S+/debian/?$", listed, re.MULTILINE):
        return found[0]
    return Path("/usr/share/debootstrap/scripts/sid").read_text().partition("default_mirror ")[2].split()[0]


def _libraries(debian: str, requirements: str, platform: str) -> str:
    recipe = (requirements, (BASE / "libraries.Dockerfile").read_text(), debian, platform, *PACKAGES)
    tag = f"mt-photos-ml-standin-libraries:{_hash(*recipe)}"

    def make(folder: Path) -> None:
        base, python = _os(debian, platform), PYTHONS[debian]
        install(requirements, folder / "libraries", python, MACHINES[platform])
        shutil.copy(BASE / "libraries.Dockerfile", folder / "Dockerfile")
        _docker_build(folder, tag, platform, OS=base, PYTHON=f"python{python}")

    return _kept(tag, make)


def install(requirements: str, folder: Path, python: str, machine: str) -> None:
    """Installs the libraries into a folder, for Debian with this Python and machine, whatever this machine has."""
    # the C library of Debian 12 and later
    abis = ["manylinux2014", *(f"manylinux_2_{minor}" for minor in range(17, 37))]
    target = [f"--python-version={python}", "--implementation=cp", "--only-binary=:all:", "--no-compile", "--no-deps"]
    target.append("--ignore-requires-python")  # it checks this machine's Python
    target += [f"--platform={abi}_{machine}" for abi in abis]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as temporary:
        left_out = WITHOUT_A_WHEEL.get(python, ())
        lines = [line for line in requirements.splitlines() if line.partition("==")[0] not in left_out]
        (listed := Path(temporary, "requirements.txt")).write_text("\n".join(lines))
        for source in (line for line in lines if line.partition("==")[0] in PUBLISHED_AS_SOURCE):
            _run(*pip, "wheel", "--no-deps", "--wheel-dir", temporary, source)
        _run(*pip, "install", *target, "--find-links", temporary, "--target", folder, "-r", listed)
    shutil.rmtree(folder / "bin")  # the scripts' first lines name this machine's Python


def _hash(*recipe: str) -> str:
    return sha256("\n".join(recipe).encode()).hexdigest()[:12]


def _kept(tag: str, make: Callable[[Path], None]) -> str:
    """The image's tag. If there is no such image yet, calls `make` with a temporary folder to build it."""
    if subprocess.run(["docker", "image", "inspect", tag], capture_output=True, check=False).returncode != 0:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder))
    return tag


def _docker_build(context: Path, tag: str, platform: str, target: str | None = None, **arguments: str) -> None:
    given = [part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")]
    given += [f"--target={target}"] if target else []
    options = ["--load", "--provenance=false", f"--platform={platform}", "--tag", tag]
    _run("docker", "buildx", "build", *options, *given, context)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
