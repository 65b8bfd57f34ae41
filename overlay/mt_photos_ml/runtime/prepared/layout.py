# SPDX-License-Identifier: AGPL-3.0-only
"""Aligns the weights in the file beside a model. onnxruntime reads packed weights by aligned loads, but pads only large
regions when it writes the file: after a region of odd length all are misaligned, and some kernels crash."""

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto

ALIGNMENT_BYTES = 64
"""Each region begins at a multiple of this."""

_PAGE_ALIGNED_BYTES = 1 << 20  # larger regions begin at a page
Place = Callable[[int, int], int]
"""Takes the offset and length of a region, returns its new offset."""


def align(model: Path, weights: Path) -> None:
    """Rewrites the file of weights, aligned, if a region in it is misaligned."""
    import onnx

    written = onnx.load(model, load_external_data=False)
    misaligned: list[int] = []

    def look(offset: int, length: int) -> int:
        misaligned.append(offset % ALIGNMENT_BYTES)
        return offset

    def move(offset: int, length: int) -> int:
        boundary = mmap.PAGESIZE if length > _PAGE_ALIGNED_BYTES else ALIGNMENT_BYTES
        place = target.seek(-(-target.tell() // boundary) * boundary)
        file.seek(offset)
        target.write(file.read(length))
        return place

    _place(written, look)
    if any(misaligned):
        moved = weights.with_suffix(".moved")
        with weights.open("rb") as file, moved.open("wb") as target:
            _place(written, move)
        moved.replace(weights)
        model.write_bytes(written.SerializeToString())


def _place(model: "ModelProto", place: Place) -> None:
    """Moves every region of a model's external data: the weights, and their packed forms."""
    for tensor in _tensors(model.graph):
        entries = {entry.key: entry for entry in tensor.external_data}
        if tensor.data_location == tensor.EXTERNAL:
            entries["offset"].value = str(place(int(entries["offset"].value), int(entries["length"].value)))
        for name, entry in entries.items():
            if name.startswith("prepacked_"):  # onnxruntime's own: KEY|OFFSET;LENGTH;…|…
                key, *packed = entry.value.split("|")
                entry.value = "|".join([key, *(_moved(region, place) for region in packed)])


def _moved(region: str, place: Place) -> str:
    offset, length, *rest = region.split(";")
    return ";".join([str(place(int(offset), int(length))), length, *rest])


def _tensors(graph: "GraphProto") -> Iterator["TensorProto"]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):  # attribute.g is empty if there is none
                yield from _tensors(inner)
