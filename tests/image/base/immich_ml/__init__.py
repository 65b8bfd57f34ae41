# SPDX-License-Identifier: AGPL-3.0-only
"""A stand-in for upstream's package: an ASGI app with /predict, and the two NPU session classes."""
