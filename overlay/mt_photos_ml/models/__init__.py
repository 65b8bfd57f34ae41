# SPDX-License-Identifier: AGPL-3.0-only
"""Models: which are known (catalog), where they come from (hub), which are loaded (store)."""
