# SPDX-License-Identifier: AGPL-3.0-only
"""Downloads models into the cache. Tries one mirror after the other; puts a model in place completely or not at all."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..machine.files import has_sha256, locked, size_of, sync
from .catalog import OCR, OCR_MODELS, OCR_RELEASE, ModelRef
from .network import ProxyError, SourceError, by_reason, without_login
from .progress import Meter, Progress, megabytes
from .sources import file_in_wheel, offered_files, repository
from .transfer import RemoteFile, download

DEFAULT_ENDPOINTS = ("https://huggingface.co", "https://hf-mirror.com")


class DownloadError(RuntimeError):
    """A model can't be downloaded. The message says what was tried, why it failed, what to do, but not which model."""


class Hub:
    """Downloads models. Any number of threads and processes may use one cache at once."""

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
        """endpoint: HF_ENDPOINT, which replaces the endpoints. logs: whether to log the progress too. npu_file: the
        NPU's file of CLIP and face models, below the type's folder; if a model has it, it replaces model.onnx."""
        self.cache = cache
        self.endpoints = tuple(address.rstrip("/") for address in ([endpoint] if endpoint else endpoints))
        self.ocr_release = ocr_release.rstrip("/")
        self._progress, self._logs = progress, logs
        self._npu_file, self._npu_asked = npu_file, set[ModelRef]()

    def fetch(self, ref: ModelRef) -> Path:
        """Downloads what is missing and returns the path of model.onnx, which may not exist if the model has a file for
        the NPU. Raises DownloadError."""
        model, folder = ref.path(self.cache), ref.folder(self.cache)
        if not (missing := self._missing(ref)):
            return model
        if not ref.is_known:
            raise DownloadError(
                f"{ref.name} is not a model that can be downloaded, and {folder} has no {', '.join(missing)}. "
                "Put it there, or correct the model's name."
            )
        in_wheel = file_in_wheel(ref)
        try:
            with locked(folder):
                if self._missing(ref):  # otherwise another process has just downloaded it
                    self._copy(ref, in_wheel) if in_wheel else self._download(ref)
        except (OSError, DownloadError) as error:
            if in_wheel:
                return in_wheel
            if not ref.missing(self.cache):  # only the NPU's file is missing
                return model
            if isinstance(error, DownloadError):
                raise
            raise DownloadError(
                f"It can't be stored: {error.strerror or error} ({error.filename or folder}). "
                "Make the folder writable, free disk space, or set MACHINE_LEARNING_CACHE_FOLDER to another folder."
            ) from None
        return model

    def invalidate(self, ref: ModelRef, files: Sequence[str]) -> bool:
        """Deletes the files, and damaged weights beside them, if they differ from what a source publishes and the cache
        is writable. Returns whether it did. Keeps a user's own model."""
        folder, published = ref.folder(self.cache), self._published(ref)
        candidates = [file for file in published if file.path in files or file.path not in ref.files]
        with suppress(OSError), locked(folder):
            damaged = {file.path for file in candidates if not file.is_right(folder / file.path)}
            for path in damaged.union(files) if damaged else ():
                (folder / path).unlink(missing_ok=True)
            return bool(damaged)
        return False

    def verify(self, ref: ModelRef) -> str | None:
        """What is wrong with the model's files, as far as can be told without a source; None if nothing."""
        folder = ref.folder(self.cache)
        if missing := self._missing(ref, ask=False):
            return f"{folder} has no {', '.join(missing)}"
        if ref.sha256 and not has_sha256(ref.path(self.cache), ref.sha256):
            return f"{ref.files[0]} in {folder} differs from the published file (SHA-256)"
        return None

    def _published(self, ref: ModelRef) -> list[RemoteFile]:
        """The model's files as the first source that answers lists them."""
        if ref.sha256:
            return [RemoteFile(ref.files[0], "", None, ref.sha256)]
        for source in self.endpoints if ref.is_known else ():
            with suppress(SourceError):
                return offered_files(ref, source, self._npu(ref))
        return []

    def _npu(self, ref: ModelRef) -> str | None:
        """The model's file for the NPU, if it may have one."""
        return f"{ref.type}/{self._npu_file}" if self._npu_file and ref.group != OCR and ref.is_known else None

    def _missing(self, ref: ModelRef, ask: bool = True) -> list[str]:
        """The files to download. ask: whether to try the NPU's file, which is tried once: a model may have none."""
        missing, npu = ref.missing(self.cache), self._npu(ref)
        if npu is None:
            return missing
        if (ref.folder(self.cache) / npu).is_file():
            return [file for file in missing if file != ref.files[0]]
        return [npu, *missing] if ask and ref not in self._npu_asked else missing

    def _download(self, ref: ModelRef) -> None:
        failures = list[tuple[str, SourceError]]()
        for source in (self.ocr_release,) if ref.group == OCR else self.endpoints:
            try:
                self._download_from(source, ref, offered_files(ref, source, self._npu(ref)))
                self._npu_asked.add(ref)
                return
            except SourceError as error:
                failures.append((source, error))
        missing, folder = ", ".join(self._missing(ref, ask=False)), ref.folder(self.cache)
        if ref.group == OCR:
            address = f"{self.ocr_release}/{OCR_MODELS[ref.name][ref.type].path}"
            network, by_hand = "HTTPS_PROXY to a proxy that reaches it", f"save {address} as {folder / ref.files[0]}"
        else:
            network = "HF_ENDPOINT to a mirror that can be reached"
            by_hand = f"put {missing} of https://huggingface.co/{repository(ref)} into {folder}"
        if all(isinstance(error, ProxyError) for _, error in failures):
            network = "HTTPS_PROXY to an HTTP proxy that works, or NO_PROXY to the hosts that need none"
        raise DownloadError(f"Every source failed ({'; '.join(by_reason(failures))}). Set {network}, or {by_hand}.")

    def _download_from(self, source: str, ref: ModelRef, files: Sequence[RemoteFile]) -> None:
        folder = ref.folder(self.cache)
        lacking = {self._staging(ref) / file.path: file for file in files if not (folder / file.path).is_file()}
        total = sum(file.size or 0 for file in lacking.values())
        needed, free = total - sum(map(size_of, lacking)), shutil.disk_usage(folder).free
        if needed > free:
            raise DownloadError(
                f"It needs {megabytes(needed)} MB, but {self.cache} has only {megabytes(free)} MB free. "
                "Free disk space, or set MACHINE_LEARNING_CACHE_FOLDER to a folder on a larger disk."
            )
        meter = Meter(ref, list(lacking), total, without_login(source), self._progress, self._logs)
        for staged, file in lacking.items():
            staged.parent.mkdir(parents=True, exist_ok=True)
            download(file, staged, meter.tick)
        self._place(ref, [file.path for file in lacking.values()])
        meter.finish()

    def _copy(self, ref: ModelRef, in_wheel: Path) -> None:
        staged = self._staging(ref) / ref.files[0]
        staged.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(in_wheel, staged)
        self._place(ref, [ref.files[0]])

    def _place(self, ref: ModelRef, files: Sequence[str]) -> None:
        """Moves files from the staging folder to the model's, the model file last: then the model is complete."""
        folder, staging = ref.folder(self.cache), self._staging(ref)
        sync(staging / file for file in files)
        for file in sorted(files, key=lambda file: file in (ref.files[0], self._npu(ref))):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (staging / file).replace(folder / file)
        shutil.rmtree(staging, ignore_errors=True)
        with suppress(OSError):  # it may hold a partial download of the model's other type
            staging.parent.rmdir()

    def _staging(self, ref: ModelRef) -> Path:
        return ref.folder(self.cache) / ".partial" / ref.type
