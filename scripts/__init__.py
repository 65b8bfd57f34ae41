# SPDX-License-Identifier: AGPL-3.0-only
"""What maintainers and CI run, the same way: build, contract, bump, publish. Each has --help."""
