# SPDX-License-Identifier: AGPL-3.0-only
"""A stand-in with upstream's names of v3.3: a model with its files, of a revision, and its session."""

from pathlib import Path
from shutil import rmtree
from typing import Any, ClassVar

from ..config import clean_name, log, settings
from ..schemas import ModelFormat, ModelTask, ModelType
from ..sessions.ort import OrtSession, Policy


class InferenceModel:
    model_task: ClassVar[ModelTask]
    model_type: ClassVar[ModelType]
    depends: ClassVar[tuple[ModelType, ...]] = ()
    """The types of the same task whose outputs predict() takes after the payload."""

    session: OrtSession

    def __init__(
        self,
        model_name: str,
        cache_dir: Path | str | None = None,
        model_format: ModelFormat | None = None,
        **model_kwargs: Any,
    ) -> None:
        self.model_name = clean_name(model_name)
        folder = settings.cache_folder / self.model_task / self.model_name
        self.cache_dir = Path(cache_dir or (folder / settings.model_revision if settings.model_revision else folder))
        self.model_format = model_format or ModelFormat.ONNX
        self.loaded = False
        self.load_attempts = 0

    @property
    def model_dir(self) -> Path:
        return self.cache_dir / self.model_type

    @property
    def model_path(self) -> Path:
        return self.model_dir / f"model.{self.model_format}"

    @property
    def cached(self) -> bool:
        return self.model_path.exists()

    def download(self) -> None:
        """Raises FileNotFoundError where the cache has no such file: there is no hub behind the stand-in."""
        if not self.cached:
            raise FileNotFoundError(f"Not in the cache: {self.model_path}")

    def load(self) -> None:
        """Raises OSError, or what onnxruntime does of a damaged file."""
        if not self.loaded:
            self.load_attempts += 1
            log.info(f"Opening {self.model_path}, attempt {self.load_attempts}")
            self.download()
            self.session, self.loaded = self._load(), True

    def _load(self) -> OrtSession:
        return OrtSession(self.model_path, Policy.PLAIN, threads=settings.model_intra_op_threads or 2)

    def predict(self, payload: Any, *outputs: Any, **options: Any) -> Any:
        raise NotImplementedError

    def clear_cache(self) -> None:
        if self.cache_dir.exists():
            rmtree(self.cache_dir)
        self.cache_dir.mkdir(parents=True)
