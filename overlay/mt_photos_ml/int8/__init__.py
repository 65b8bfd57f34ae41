# SPDX-License-Identifier: AGPL-3.0-only
"""The tool behind `models optimize`. The service itself only opens the files that it writes (models/variants.py)."""
