# SPDX-License-Identifier: AGPL-3.0-only
"""Builds ONNX models node by node."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

Shape = Sequence[int | str]


class Graph:
    """An ONNX graph under construction: calling it adds a node and returns the name of its output."""

    def __init__(self) -> None:
        # One message from the start: building it from parts would copy a gigabyte of weights twice.
        self._model = ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 17)])
        self._graph = self._model.graph

    def __call__(self, op: str, *inputs: str | ArrayLike, out: str = "", **attributes: Any) -> str:
        out = out or f"{op}_{len(self._graph.node)}"
        self._graph.node.append(helper.make_node(op, [self._name(i) for i in inputs], [out], **attributes))
        return out

    def _name(self, value: str | ArrayLike) -> str:
        if isinstance(value, str):
            return value
        array = np.asarray(value)
        name = f"const_{len(self._graph.initializer)}"
        kept = array.astype(np.int64 if array.dtype.kind == "i" else np.float32, copy=False)
        self._graph.initializer.append(numpy_helper.from_array(kept, name))
        return name

    def unit(self, x: str, out: str) -> None:
        """Normalises the vectors of x to length one, as the output `out`."""
        self("Div", x, self("ReduceL2", x, axes=[-1], keepdims=1), out=out)

    def save(
        self,
        path: Path,
        inputs: Mapping[str, Shape],
        outputs: Mapping[str, Shape],
        kind: int = TensorProto.FLOAT,
        *,
        check: bool = True,
    ) -> None:
        """Writes the model. kind: the type of all inputs. check: validates it, which copies all weights."""
        self._graph.name = path.parent.name
        self._graph.input.extend(helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items())
        self._graph.output.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()
        )
        if check:
            checker.check_model(self._model, full_check=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._model.SerializeToString())
