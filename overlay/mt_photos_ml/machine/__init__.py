# SPDX-License-Identifier: AGPL-3.0-only
"""Access to the system: processor, memory, cards, files, threads."""
