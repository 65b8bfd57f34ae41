# SPDX-License-Identifier: AGPL-3.0-only
"""The six models of a service, each with the type that its task needs, so that the type checker finds a wrong one."""

from dataclasses import dataclass
from typing import Self

from ..models.catalog import ROLES, Role
from ..models.choice import model_of
from ..models.loader import Model, ModelKey
from ..settings import Settings
from . import clip, faces, ocr


@dataclass(frozen=True)
class Networks:
    """The models, in the order of ROLES."""

    ocr_detector: ModelKey[ocr.Detector]
    ocr_recogniser: ModelKey[ocr.Recogniser]
    clip_visual: ModelKey[clip.Visual]
    clip_textual: ModelKey[clip.Textual]
    face_detector: ModelKey[faces.Detector]
    face_recogniser: ModelKey[faces.Recogniser]

    @classmethod
    def of(cls, settings: Settings) -> Self:
        a, b, c, d, e, f = (model_of(settings, role) for role in ROLES)
        return cls(
            ModelKey(a, ocr.Detector.load),
            ModelKey(b, ocr.Recogniser.load),
            ModelKey(c, clip.Visual.load),
            ModelKey(d, clip.Textual.load),
            ModelKey(e, faces.Detector.load),
            ModelKey(f, faces.Recogniser.load),
        )

    def by_role(self) -> dict[Role, ModelKey[Model]]:
        return dict(zip(ROLES, self.all(), strict=True))

    def all(self) -> tuple[ModelKey[Model], ...]:
        return tuple(vars(self).values())
