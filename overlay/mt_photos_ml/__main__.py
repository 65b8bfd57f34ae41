# SPDX-License-Identifier: AGPL-3.0-only
"""`python -m mt_photos_ml` is the command `mt-photos-ml`."""

import sys

from .cli import main

sys.exit(main())
