# SPDX-License-Identifier: AGPL-3.0-only
"""Two tiny networks with the interfaces of PP-OCR. They find dark areas and read each as the letter a."""

from pathlib import Path

import numpy as np
import onnx

from demo.graph import Graph


def build_ocr(folder: Path) -> None:
    """Writes the two networks. folder: …/ocr/NAME."""
    graph = Graph()
    grey = graph("ReduceMean", "x", axes=[1], keepdims=1)
    graph("Sigmoid", graph("Mul", grey, -8.0), out="probability")
    detector = folder / "detection" / "model.onnx"
    graph.save(detector, {"x": ["n", 3, "?", "?"]}, {"probability": ["n", 1, "?", "?"]})
    graph = Graph()
    columns = graph("MaxPool", graph("Neg", "x"), kernel_shape=[48, 8], strides=[48, 8])
    darkest = graph("Unsqueeze", graph("ReduceMean", columns, axes=[1, 2], keepdims=0), [2])
    logits = graph("Mul", graph("Sub", darkest, 0.5), np.array([-99.0, 99.0, 0.0, 0.0]))
    graph("Softmax", logits, axis=2, out="classes")
    recogniser = folder / "recognition" / "model.onnx"
    graph.save(recogniser, {"x": ["n", 3, 48, "w"]}, {"classes": ["n", "t", 4]})
    model = onnx.load(recogniser)
    onnx.helper.set_model_props(model, {"character": "a\nb"})
    onnx.save(model, recogniser)
