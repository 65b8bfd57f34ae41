# SPDX-License-Identifier: AGPL-3.0-only
"""The ways to write an int8 variant, with onnxruntime's own quantizers."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ..runtime import Tensors
from ..runtime.ort import session_options

Way = Callable[[Path, Path, Sequence[Tensors]], None]
"""Quantises a model. Takes the model file, the file to write, and inputs that the service gives such a model."""


def write_plain(model: Path, folder: Path) -> Path:
    """Writes the model with its constants folded, in two files, because protobuf can't hold 2 GB."""
    import onnxruntime

    options, path = session_options(0), folder / "plain.onnx"
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "plain.bin")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    onnxruntime.InferenceSession(
        model,
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["MatMulAddFusion"],  # it turns MatMul into Gemm, which can't be quantised in blocks
    )
    return path


# Weights have 7 bits, with a scale per channel: products of 8 bits overflow on processors without VNNI (onnxruntime's
# manual on quantization), and a variant must give the same vectors on every processor.


def _dynamic(plain: Path, written: Path, feeds: Sequence[Tensors]) -> None:
    """One scale for each product's input, computed for each photo. The fastest way."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(plain, written, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, reduce_range=True)


def _in_blocks(plain: Path, written: Path, feeds: Sequence[Tensors]) -> None:
    """One scale for every 64 numbers, so that an outlier affects only its block."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(str(plain), bits=8, block_size=64, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(written), False)


class _Reader:
    """Gives the feeds to the quantizer, through its interface."""

    def __init__(self, feeds: Sequence[Tensors]) -> None:
        self._left = iter(feeds)

    def get_next(self) -> Tensors | None:
        return next(self._left, None)


def _calibrated(plain: Path, written: Path, feeds: Sequence[Tensors]) -> None:
    """Scales fixed in advance, from the values that these feeds cause. The only way that speeds up convolutions."""
    from onnxruntime.quantization import QuantType, quantize_static

    quantize_static(
        plain,
        written,
        _Reader(feeds),
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


WAYS: dict[str, dict[str, Way]] = {
    "visual": {"dynamic": _dynamic, "in blocks": _in_blocks},
    "textual": {"dynamic": _dynamic, "in blocks": _in_blocks},
    "recognition": {"calibrated": _calibrated},
}
