# SPDX-License-Identifier: AGPL-3.0-only
"""A stand-in with upstream's public names: sessions of model files."""
