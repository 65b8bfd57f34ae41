# SPDX-License-Identifier: AGPL-3.0-only
"""`python -m mt_photos_ml` is the command `mt-photos-ml`."""

from .cli import main

main()
