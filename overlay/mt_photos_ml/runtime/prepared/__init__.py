# SPDX-License-Identifier: AGPL-3.0-only
"""Models written once in the form that onnxruntime maps."""
