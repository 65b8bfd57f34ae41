# SPDX-License-Identifier: AGPL-3.0-only
"""A session that remembers what it was given, for tests that look at the input of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from mt_photos_ml.runtime import Node, Session


@dataclass
class Recorded:
    """A real session behind the seam."""

    session: Session
    feeds: list[Mapping[str, NDArray[Any]]] = field(default_factory=list)
    one_thread: Session | None = None

    @property
    def inputs(self) -> Sequence[Node]:
        return self.session.inputs

    @property
    def outputs(self) -> Sequence[Node]:
        return self.session.outputs

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.session.metadata

    def run(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        self.feeds.append(feed)
        return self.session.run(feed)
