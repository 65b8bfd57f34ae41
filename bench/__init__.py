# SPDX-License-Identifier: AGPL-3.0-only
"""The benchmark: the floor, a straightforward service and ours, side by side in one run."""
