# SPDX-License-Identifier: AGPL-3.0-only
"""Replaces upstream's main.py, which stays as upstream_main: upstream's own start command serves our app."""

from mt_photos_ml.server.service import app

__all__ = ["app"]
