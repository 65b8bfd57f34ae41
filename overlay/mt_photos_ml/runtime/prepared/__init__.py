# SPDX-License-Identifier: AGPL-3.0-only
"""Writes models once in a form that onnxruntime maps into memory."""
