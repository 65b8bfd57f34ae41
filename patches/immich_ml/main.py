# SPDX-License-Identifier: AGPL-3.0-only
"""Replaces upstream's main.py, so that upstream's start command serves our app; upstream_main.py is the original."""

from mt_photos_ml.server.service import app

__all__ = ["app"]
