# SPDX-License-Identifier: AGPL-3.0-only
"""A session that remembers what it was given, for tests that look at the input of a model."""

from typing import Any

from numpy.typing import NDArray

from mt_photos_ml.runtime import Session, Tensors


class Recorded:
    """A real session behind the seam."""

    one_thread: Session | None = None

    def __init__(self, session: Session) -> None:
        self.session, self.feeds = session, list[Tensors]()
        self.inputs, self.outputs, self.metadata = session.inputs, session.outputs, session.metadata

    def run(self, feed: Tensors) -> list[NDArray[Any]]:
        self.feeds.append(feed)
        return self.session.run(feed)
