# SPDX-License-Identifier: AGPL-3.0-only
"""What every request passes: log, lifecycle, key, length. One plain ASGI class a file."""
