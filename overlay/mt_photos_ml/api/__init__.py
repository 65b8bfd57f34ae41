# SPDX-License-Identifier: AGPL-3.0-only
"""The MT Photos API over HTTP."""
