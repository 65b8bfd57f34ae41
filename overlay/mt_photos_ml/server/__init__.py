# SPDX-License-Identifier: AGPL-3.0-only
"""How the service is run: its configuration, its log, what it says at the start."""
