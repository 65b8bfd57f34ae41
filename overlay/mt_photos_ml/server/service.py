# SPDX-License-Identifier: AGPL-3.0-only
"""The service as an ASGI app, in the image and on a bare machine; in the image with upstream's app behind it."""

from . import startup

startup.check_machine()

from ..api import upstream  # noqa: E402
from ..api.middleware.lifecycle import Lifecycle  # noqa: E402
from ..app import create_app  # noqa: E402
from ..machine.memory import configure_malloc  # noqa: E402
from .announce import announce  # noqa: E402

configure_malloc()
_settings = startup.settings_or_exit(4)  # gunicorn's code for an app that can't be loaded: no further try
_is_exposed = not startup.is_loopback(_settings.immich_host)
_fallback = upstream.Upstream(_settings.immich_api == "open") if upstream.is_served(_settings) else None
app = create_app(_settings, Lifecycle(_settings.drain), _fallback, is_exposed=_is_exposed)
announce(_settings, in_image=upstream.is_there(), is_exposed=_is_exposed)
