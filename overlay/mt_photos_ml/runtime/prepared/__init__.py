# SPDX-License-Identifier: AGPL-3.0-only
"""Models written once in a form that onnxruntime maps into memory."""
