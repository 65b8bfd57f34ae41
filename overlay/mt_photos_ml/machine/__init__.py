# SPDX-License-Identifier: AGPL-3.0-only
"""What is asked of the system: processor, memory, files, threads."""
