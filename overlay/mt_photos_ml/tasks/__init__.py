# SPDX-License-Identifier: AGPL-3.0-only
"""What is recognised: functions of pixels and sessions. No HTTP, no state."""
