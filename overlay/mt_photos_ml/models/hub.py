# SPDX-License-Identifier: AGPL-3.0-only
"""Fetching models into the cache: mirrors in turn, resumed, checked, put in place whole or not at all."""

import fcntl
import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from . import transfer
from .catalog import KNOWN, OCR, OCR_MODELS, OCR_RELEASE, Part
from .transfer import (
    File,
    Meter,
    Progress,
    Unusable,
    bring,
    matches,
    megabytes,
    of_the_disk,
    open_address,
    reason,
    sha256_of,
    size_of,
    soon,
)

DEFAULT_ENDPOINTS = ("https://huggingface.co", "https://hf-mirror.com")
CHECKSUMS = "SHA256SUMS"

_OTHER_FORMATS = (".armnn", ".rknn", ".onnx")


class DownloadError(RuntimeError):
    """A model is not here and can't be had: what was tried, what came of it, what to do. For a person to read.

    The message does not begin with the name of the part; who shows it knows which it is.
    """


class Hub:
    """Where models come from. Any number of threads and processes may fetch into one cache at once."""

    def __init__(
        self,
        cache: Path,
        endpoint: str | None = None,
        *,
        endpoints: Sequence[str] = DEFAULT_ENDPOINTS,
        ocr_release: str = OCR_RELEASE,
        progress: Progress | None = None,
        npu_file: str | None = None,
    ) -> None:
        """endpoint: the one of HF_ENDPOINT, asked alone. progress: is told instead of the log how far a download is.

        npu_file: of a CLIP or face model for this machine's NPU, below the folder of the part; taken in place of the
        onnx file where the model has one.
        """
        self._npu_file = npu_file
        self._asked: set[Part] = set()
        self.cache = cache
        self.endpoints = tuple(address.rstrip("/") for address in ([endpoint] if endpoint else endpoints))
        self.ocr_release = ocr_release.rstrip("/")
        self.progress = progress

    def fetch(self, part: Part) -> Path:
        """The path of the part's model.onnx, after downloading what is missing. Raises DownloadError.

        Where the part has a file for the NPU, the onnx file need not be there.
        """
        model = self._folder(part) / part.files[0]
        if not (missing := self._missing(part)):
            return model
        if part.name not in KNOWN[part.folder]:
            raise DownloadError(
                f"{part.name} is not a model that can be downloaded, and {self._folder(part)} has no "
                f"{_listed(missing)}. Put it there, or choose a model by its right name."
            )
        carried = carried_by_wheel(part)
        try:
            with self._locked(part):
                if carried and part.missing(self.cache):
                    self._copy(part, carried)
                elif self._missing(part):
                    self._download(part)
        except (OSError, DownloadError) as error:
            if carried:
                return carried
            if not part.missing(self.cache):  # but for the NPU's file, all is there
                return model
            if isinstance(error, DownloadError):
                raise
            raise DownloadError(
                f"It can't be stored: {error.strerror or error} ({error.filename or self._folder(part)}). "
                "Make the folder writable and the disk large enough, or let MACHINE_LEARNING_CACHE_FOLDER name another."
            ) from None
        return model

    def discard(self, part: Part, files: Sequence[str]) -> bool:
        """Removes files of the part that can't be used, and their checksums. True where they can be fetched again.

        With them go others that have not the publisher's checksum. False, and nothing is touched, where fetching would
        not help: a model of the user's own, files that are what was published, a cache that can't be written.
        """
        if part.name not in KNOWN[part.folder] or not self._folder(part).is_dir():
            return False
        try:
            with self._locked(part):
                spoiled, known = self._spoiled(part), self._checksums(part)
                if not spoiled and all(file in known for file in files):
                    return False
                for path in {*files, *spoiled}:
                    (self._folder(part) / path).unlink(missing_ok=True)
                self._record(part, dict.fromkeys((*files, *spoiled)))
        except OSError:
            return False
        return True

    def verify(self, part: Part) -> str | None:
        """None where the part is whole, as far as checksums are known; or what is wrong with it, in words."""
        if missing := self._missing(part, asks=False):
            return f"{self._folder(part)} has no {_listed(missing)}"
        if spoiled := self._spoiled(part):
            return f"{_listed(spoiled)} in {self._folder(part)} is not what was published (another SHA-256)"
        return None

    def _npu(self, part: Part) -> str | None:
        """The part's file for the NPU, if it may have one."""
        has = self._npu_file is not None and part.folder != OCR and part.name in KNOWN[part.folder]
        return f"{part.kind}/{self._npu_file}" if has else None

    def _missing(self, part: Part, asks: bool = True) -> list[str]:
        """What is to be fetched. asks: for the NPU's file too, once; the model may have none."""
        missing, npu = part.missing(self.cache), self._npu(part)
        if npu is None:
            return missing
        if (self._folder(part) / npu).is_file():
            return [file for file in missing if file != part.files[0]]
        return [npu, *missing] if asks and part not in self._asked else missing

    def _folder(self, part: Part) -> Path:
        return self.cache / part.folder / part.name

    def _staging(self, part: Part) -> Path:
        return self._folder(part) / ".partial" / part.kind

    @contextmanager
    def _locked(self, part: Part) -> Iterator[None]:
        """One thread of one process at a time in this model's folder."""
        self._folder(part).mkdir(parents=True, exist_ok=True)
        with (self._folder(part) / ".lock").open("w") as lock:
            with suppress(OSError):  # some network shares know no locks: a second download there is only waste
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _download(self, part: Part) -> None:
        failures = []
        for source in (self.ocr_release,) if part.folder == OCR else self.endpoints:
            try:
                self._transfer(part, _offered(part, source, self._npu(part)), source)
                self._asked.add(part)
                return
            except DownloadError:
                raise
            except Exception as error:  # what a library raises for a bad answer is not ours to list
                if of_the_disk(error):
                    raise
                failures.append(f"{source}: {reason(error)}")
        missing, folder = _listed(self._missing(part, asks=False)), self._folder(part)
        if part.folder == OCR:
            address = f"{self.ocr_release}/{OCR_MODELS[part.name][part.kind].path}"
            remedy = f"Let HTTPS_PROXY name a proxy that reaches it, or save {address} as {folder / part.files[0]}."
        else:
            remedy = (
                "Let HF_ENDPOINT name a mirror that can be reached, "
                f"or put {missing} of https://huggingface.co/{_repository(part)} into {folder}."
            )
        raise DownloadError(f"No source could serve it ({'; '.join(failures)}). {remedy}")

    def _transfer(self, part: Part, files: Sequence[File], source: str) -> None:
        lacking = [file for file in files if not (self._folder(part) / file.path).is_file()]
        staged = {self._staging(part) / file.path: file for file in lacking}
        for path in staged:
            path.parent.mkdir(parents=True, exist_ok=True)
        total = sum(file.size or 0 for file in lacking)
        needed = total - sum(map(size_of, staged))
        free = shutil.disk_usage(self._folder(part)).free
        if needed > free:
            raise DownloadError(
                f"It needs {megabytes(needed)} MB, but {self.cache} has only {megabytes(free)} MB free. "
                "Make room, or let MACHINE_LEARNING_CACHE_FOLDER name a folder on a larger disk."
            )
        meter = Meter(part, list(staged), total, source, self.progress)
        for path, file in staged.items():
            bring(file, path, meter)
        self._place(part, lacking)
        meter.finish()

    def _copy(self, part: Part, carried: Path) -> None:
        """From RapidOCR's wheel into the cache."""
        staged = self._staging(part) / part.files[0]
        staged.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(carried, staged)
        self._place(part, [File(part.files[0], "", None, None)])

    def _place(self, part: Part, files: Sequence[File]) -> None:
        """From the staging folder to where they belong, the model file last: where it is, the part is whole."""
        folder, staging = self._folder(part), self._staging(part)
        for file in files:
            with (staging / file.path).open("rb") as whole:
                os.fsync(whole.fileno())  # else a power cut could leave an empty file under the right name
        # without a size in the list nobody said what the file should be, and a checksum would prove nothing
        self._record(
            part, {file.path: file.sha256 or sha256_of(staging / file.path) for file in files if file.size is not None}
        )
        for file in sorted(files, key=lambda file: file.path in (part.files[0], self._npu(part))):
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            (staging / file.path).replace(folder / file.path)
        shutil.rmtree(staging, ignore_errors=True)
        with suppress(OSError):  # another part's half files are still in it
            staging.parent.rmdir()

    def _checksums(self, part: Part) -> dict[str, str]:
        """SHA-256 of the part's files, as far as it is known: by the catalogue, or recorded at the download."""
        if part.folder == OCR:
            known = OCR_MODELS.get(part.name, {}).get(part.kind)
            return {part.files[0]: known.sha256} if known else {}
        recorded = self._recorded(part).items()
        return {path: sha256 for path, sha256 in recorded if path in part.files or path.startswith(f"{part.kind}/")}

    def _spoiled(self, part: Part) -> list[str]:
        known = self._checksums(part).items()
        return [path for path, sha256 in known if not matches(self._folder(part) / path, sha256)]

    def _recorded(self, part: Part) -> dict[str, str]:
        try:
            lines = (self._folder(part) / CHECKSUMS).read_text().splitlines()
        except (OSError, ValueError):
            return {}
        return {path: sha256 for sha256, found, path in (line.partition("  ") for line in lines) if found}

    def _record(self, part: Part, changes: Mapping[str, str | None]) -> None:
        """Into the file that `sha256sum -c` reads; None strikes a file out."""
        before = self._recorded(part)
        after = {path: sha256 for path, sha256 in {**before, **changes}.items() if sha256}
        if part.folder == OCR or after == before:
            return
        target = self._folder(part) / CHECKSUMS
        half = target.with_name(f".{CHECKSUMS}")
        half.write_text("".join(f"{sha256}  {path}\n" for path, sha256 in sorted(after.items())))
        half.replace(target)


def _repository(part: Part) -> str:
    return f"immich-app/{part.name}"


def _offered(part: Part, source: str, npu: str | None = None) -> list[File]:
    """The files of the part that a source has, with what it says of them: the file `npu` in place of the onnx file
    where there is one. Raises whatever comes of asking."""
    if part.folder == OCR:
        known = OCR_MODELS[part.name][part.kind]
        address = f"{source}/{known.path}"
        with open_address(address, "bytes=0-0") as answer:
            length = answer.headers.get("Content-Range", "").rpartition("/")[2] or answer.headers.get("Content-Length")
        return [File(part.files[0], address, int(length) if length else None, known.sha256)]

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi, hf_hub_url  # it takes long to import, and most starts need no download

    # without a token: the repositories are public, and a mirror is not to be trusted with one
    ask = HfApi(endpoint=source, token=False).model_info
    found = soon(lambda: ask(_repository(part), timeout=transfer.ANSWER_SECONDS, files_metadata=True))
    files = [
        File(
            file.rfilename,
            hf_hub_url(_repository(part), file.rfilename, revision=found.sha, endpoint=source),
            file.size,
            file.lfs.sha256 if file.lfs else None,
        )
        for file in found.siblings or ()
        if file.rfilename == npu or _wanted(part, file.rfilename)
    ]
    if npu in (there := {file.path for file in files}):
        return [file for file in files if file.path == npu or not _belongs_to_onnx(part, file.path)]
    if lacking := set(part.files) - there:
        raise Unusable(f"its {_repository(part)} has no {_listed(sorted(lacking))}")
    return files


def _wanted(part: Part, path: str) -> bool:
    """Whether the part needs a file of the repository: what onnxruntime reads, with weights beside the model file."""
    if path in part.files:
        return True
    folder, _, name = path.rpartition("/")
    return folder == part.kind and not name.startswith(".") and not name.endswith(_OTHER_FORMATS)


def _belongs_to_onnx(part: Part, path: str) -> bool:
    """Whether it is the model file for onnxruntime, or weights beside it."""
    return path == part.files[0] or path not in part.files


def carried_by_wheel(part: Part) -> Path | None:
    """The OCR model in the installed RapidOCR wheel, found without importing it; None where it carries another."""
    known = OCR_MODELS.get(part.name, {}).get(part.kind) if part.folder == OCR else None
    spec = importlib.util.find_spec("rapidocr") if known and known.in_wheel else None
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for name in known.in_wheel if known else ():
            path = Path(folder) / "models" / name
            if known and matches(path, known.sha256):
                return path
    return None


def _listed(paths: Sequence[str]) -> str:
    return ", ".join(paths)
