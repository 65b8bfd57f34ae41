# SPDX-License-Identifier: AGPL-3.0-only
"""A stand-in with upstream's names of v3.3: a session of onnxruntime by a policy."""

from enum import StrEnum
from pathlib import Path
from typing import Any

import onnxruntime


class Policy(StrEnum):
    PLAIN = "plain"
    FIXED_SHAPES = "fixed-shapes"


def first[T](values: list[T], otherwise: T) -> T:
    return values[0] if values else otherwise


class OrtSession:
    def __init__(self, model_path: Path | str, policy: Policy = Policy.PLAIN, *, threads: int = 2) -> None:
        self.model_path, self.policy = Path(model_path), policy
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = onnxruntime.InferenceSession(str(self.model_path), options, ["CPUExecutionProvider"])

    def get_inputs(self) -> list[Any]:
        return self.session.get_inputs()

    def get_outputs(self) -> list[Any]:
        return self.session.get_outputs()

    def run(self, output_names: list[str] | None, input_feed: dict[str, Any]) -> list[Any]:
        return self.session.run(output_names, input_feed)
