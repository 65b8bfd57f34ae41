# SPDX-License-Identifier: AGPL-3.0-only
"""The service as processes: gunicorn's configuration, its worker, the app built once, the log."""
