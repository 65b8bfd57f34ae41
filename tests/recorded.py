# SPDX-License-Identifier: AGPL-3.0-only
"""A session that records its inputs, for tests that check the input of a model."""

from typing import Any

from numpy.typing import NDArray

from mt_photos_ml.runtime import PlainSession, Session, Tensors


class Recorded(PlainSession):
    """Wraps a real session. few_shapes: whether it acts as on a device that plans each shape."""

    cores = 1

    def __init__(self, session: Session, few_shapes: bool = False) -> None:
        self.session, self.feeds, self.few_shapes = session, list[Tensors](), few_shapes
        self.inputs, self.outputs, self.metadata = session.inputs, session.outputs, session.metadata

    def run(self, feed: Tensors) -> list[NDArray[Any]]:
        self.feeds.append(feed)
        return self.session.run(feed)
