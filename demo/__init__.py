# SPDX-License-Identifier: AGPL-3.0-only
"""Stand-in models and drawn pictures, with which the whole service runs offline and without real weights."""
