# SPDX-License-Identifier: AGPL-3.0-only
"""A stand-in for upstream's package, with upstream's public names: names and behaviour are upstream's, the code is
written for the tests."""
