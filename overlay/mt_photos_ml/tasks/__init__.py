# SPDX-License-Identifier: AGPL-3.0-only
"""Recognition as functions of pixels and sessions, without HTTP or state."""
