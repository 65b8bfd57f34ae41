# SPDX-License-Identifier: AGPL-3.0-only
"""Fetching models into the cache: mirrors in turn, put in place whole or not at all."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..machine.files import locked, sha256_of, size_of, sync
from .catalog import OCR, OCR_MODELS, OCR_RELEASE, ModelRef
from .checksums import known_checksums, record_checksums, spoiled_files
from .progress import Meter, Progress, megabytes
from .sources import file_in_wheel, offered_files, repository
from .transfer import RemoteFile, SourceError, download

DEFAULT_ENDPOINTS = ("https://huggingface.co", "https://hf-mirror.com")


class DownloadError(RuntimeError):
    """A model is not here and can't be had: what was tried, what came of it, what to do. For a person to read.

    The message does not begin with the name of the model; who shows it knows which it is.
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
        progress: Progress = lambda download: None,
        logs: bool = True,
        npu_file: str | None = None,
    ) -> None:
        """endpoint: the one of HF_ENDPOINT, asked alone. progress: is told how far a download is; logs: so is the log.

        npu_file: of a CLIP or face model for this machine's NPU, below the folder of its type; taken in place of the
        onnx file where the model has one.
        """
        self._npu_file = npu_file
        self._npu_asked: set[ModelRef] = set()
        self.cache = cache
        self.endpoints = tuple(address.rstrip("/") for address in ([endpoint] if endpoint else endpoints))
        self.ocr_release = ocr_release.rstrip("/")
        self.progress, self._logs = progress, logs

    def fetch(self, ref: ModelRef) -> Path:
        """The path of the model.onnx, after downloading what is missing. Raises DownloadError.

        Where the model has a file for the NPU, the onnx file need not be there.
        """
        model, folder = ref.path(self.cache), ref.folder(self.cache)
        if not (missing := self._missing(ref)):
            return model
        if not ref.is_known:
            raise DownloadError(
                f"{ref.name} is not a model that can be downloaded, and {folder} has no {', '.join(missing)}. "
                "Put it there, or choose a model by its right name."
            )
        in_wheel = file_in_wheel(ref)
        try:
            with locked(folder):
                if in_wheel and ref.missing(self.cache):
                    self._copy(ref, in_wheel)
                elif self._missing(ref):
                    self._download(ref)
        except (OSError, DownloadError) as error:
            if in_wheel:
                return in_wheel
            if not ref.missing(self.cache):  # but for the NPU's file, all is there
                return model
            if isinstance(error, DownloadError):
                raise
            raise DownloadError(
                f"It can't be stored: {error.strerror or error} ({error.filename or folder}). "
                "Make the folder writable and the disk large enough, or let MACHINE_LEARNING_CACHE_FOLDER name another."
            ) from None
        return model

    def invalidate(self, ref: ModelRef, files: Sequence[str]) -> bool:
        """Removes files of the model that can't be used, and their checksums. True where they can be fetched again.

        With them go others that have not the publisher's checksum. False, and nothing is touched, where fetching would
        not help: a model of the user's own, files that are what was published, a cache that can't be written.
        """
        folder = ref.folder(self.cache)
        if not ref.is_known or not folder.is_dir():
            return False
        try:
            with locked(folder):
                spoiled, known = spoiled_files(folder, ref), known_checksums(folder, ref)
                if not spoiled and all(file in known for file in files):
                    return False
                for path in {*files, *spoiled}:
                    (folder / path).unlink(missing_ok=True)
                record_checksums(folder, ref, dict.fromkeys((*files, *spoiled)))
        except OSError:
            return False
        return True

    def verify(self, ref: ModelRef) -> str | None:
        """None where the model is whole, as far as checksums are known; or what is wrong with it, in words."""
        folder = ref.folder(self.cache)
        if missing := self._missing(ref, ask=False):
            return f"{folder} has no {', '.join(missing)}"
        if spoiled := spoiled_files(folder, ref):
            return f"{', '.join(spoiled)} in {folder} is not what was published (another SHA-256)"
        return None

    def _npu(self, ref: ModelRef) -> str | None:
        """The model's file for the NPU, if it may have one."""
        return f"{ref.type}/{self._npu_file}" if self._npu_file and ref.task != OCR and ref.is_known else None

    def _missing(self, ref: ModelRef, ask: bool = True) -> list[str]:
        """What is to be fetched. ask: for the NPU's file too, once; the model may have none."""
        missing, npu = ref.missing(self.cache), self._npu(ref)
        if npu is None:
            return missing
        if (ref.folder(self.cache) / npu).is_file():
            return [file for file in missing if file != ref.files[0]]
        return [npu, *missing] if ask and ref not in self._npu_asked else missing

    def _download(self, ref: ModelRef) -> None:
        failures = []
        for source in (self.ocr_release,) if ref.task == OCR else self.endpoints:
            try:
                self._download_from(source, ref, offered_files(ref, source, self._npu(ref)))
                self._npu_asked.add(ref)
                return
            except SourceError as error:
                failures.append(f"{source}: {error}")
        missing, folder = ", ".join(self._missing(ref, ask=False)), ref.folder(self.cache)
        if ref.task == OCR:
            address = f"{self.ocr_release}/{OCR_MODELS[ref.name][ref.type].path}"
            remedy = f"Let HTTPS_PROXY name a proxy that reaches it, or save {address} as {folder / ref.files[0]}."
        else:
            remedy = (
                "Let HF_ENDPOINT name a mirror that can be reached, "
                f"or put {missing} of https://huggingface.co/{repository(ref)} into {folder}."
            )
        raise DownloadError(f"No source could serve it ({'; '.join(failures)}). {remedy}")

    def _download_from(self, source: str, ref: ModelRef, files: Sequence[RemoteFile]) -> None:
        folder = ref.folder(self.cache)
        lacking = {self._staging(ref) / file.path: file for file in files if not (folder / file.path).is_file()}
        for staged in lacking:
            staged.parent.mkdir(parents=True, exist_ok=True)
        total = sum(file.size or 0 for file in lacking.values())
        needed, free = total - sum(map(size_of, lacking)), shutil.disk_usage(folder).free
        if needed > free:
            raise DownloadError(
                f"It needs {megabytes(needed)} MB, but {self.cache} has only {megabytes(free)} MB free. "
                "Make room, or let MACHINE_LEARNING_CACHE_FOLDER name a folder on a larger disk."
            )
        meter = Meter(ref, list(lacking), total, source, self.progress, self._logs)
        for staged, file in lacking.items():
            download(file, staged, meter.tick)
        # without a size in the list nobody said what the file should be, and a checksum would prove nothing
        sized = {file.path: file.sha256 or sha256_of(path) for path, file in lacking.items() if file.size is not None}
        self._place(ref, [file.path for file in lacking.values()], sized)
        meter.finish()

    def _copy(self, ref: ModelRef, in_wheel: Path) -> None:
        """From RapidOCR's wheel into the cache."""
        staged = self._staging(ref) / ref.files[0]
        staged.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(in_wheel, staged)
        self._place(ref, [ref.files[0]], {})

    def _place(self, ref: ModelRef, files: Sequence[str], checksums: dict[str, str]) -> None:
        """From the staging folder to where they belong, the model file last: where it is, the model is whole."""
        folder, staging = ref.folder(self.cache), self._staging(ref)
        sync(staging / file for file in files)
        record_checksums(folder, ref, checksums)
        for file in sorted(files, key=lambda file: file in (ref.files[0], self._npu(ref))):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (staging / file).replace(folder / file)
        shutil.rmtree(staging, ignore_errors=True)
        with suppress(OSError):  # another network's half files are still in it
            staging.parent.rmdir()

    def _staging(self, ref: ModelRef) -> Path:
        return ref.folder(self.cache) / ".partial" / ref.type
