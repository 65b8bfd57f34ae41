# SPDX-License-Identifier: AGPL-3.0-only
"""Commands that maintainers and CI run, such as build, contract, bump and publish. Each has --help."""
