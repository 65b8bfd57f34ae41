# SPDX-License-Identifier: AGPL-3.0-only
"""The tool behind `models optimize`. The service knows of it only which file to open, by models/variants.py."""
