# SPDX-License-Identifier: AGPL-3.0-only
"""The processes of the service: gunicorn's configuration, its worker, the app, the log."""
