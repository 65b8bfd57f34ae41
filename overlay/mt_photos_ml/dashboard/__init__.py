# SPDX-License-Identifier: AGPL-3.0-only
"""The page for people and the API behind it."""
