# SPDX-License-Identifier: AGPL-3.0-only
"""A stand-in with upstream's public names: a session of onnxruntime on the processor."""

from pathlib import Path
from typing import Any

import onnxruntime

from ..config import settings


class OrtSession:
    def __init__(
        self,
        model_path: Path | str,
        providers: list[str] | None = None,
        provider_options: list[dict[str, Any]] | None = None,
        sess_options: onnxruntime.SessionOptions | None = None,
    ) -> None:
        self.model_path = Path(model_path)
        self.providers = providers or ["CPUExecutionProvider"]
        self.sess_options = sess_options or self._options()
        self.session = onnxruntime.InferenceSession(
            str(self.model_path), self.sess_options, self.providers, provider_options
        )

    @staticmethod
    def _options() -> onnxruntime.SessionOptions:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.model_intra_op_threads or 2
        options.inter_op_num_threads = settings.model_inter_op_threads or 1
        return options

    def get_inputs(self) -> list[Any]:
        return self.session.get_inputs()

    def get_outputs(self) -> list[Any]:
        return self.session.get_outputs()

    def run(self, output_names: list[str] | None, input_feed: dict[str, Any], run_options: Any = None) -> list[Any]:
        return self.session.run(output_names, input_feed, run_options)
