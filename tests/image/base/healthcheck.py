# SPDX-License-Identifier: AGPL-3.0-only
"""A stand-in for upstream's script of this name: exits with 1 if the service does not answer."""

import os
import sys
from http.client import HTTPConnection

host, port = os.environ.get("IMMICH_HOST") or "localhost", int(os.environ.get("IMMICH_PORT") or 3003)
connection = HTTPConnection("localhost" if host in ("0.0.0.0", "::", "[::]") else host, port, timeout=2)
try:
    connection.request("GET", "/ping")
    sys.exit(connection.getresponse().status != 200)
except OSError:
    sys.exit(1)
