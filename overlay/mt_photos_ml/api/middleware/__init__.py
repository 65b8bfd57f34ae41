# SPDX-License-Identifier: AGPL-3.0-only
"""The middleware that every request passes: path, log, lifecycle, key, length. One plain ASGI class a file."""
