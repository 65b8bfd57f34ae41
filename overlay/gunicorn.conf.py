# SPDX-License-Identifier: AGPL-3.0-only
"""How the image runs: gunicorn reads this file of its working directory. Upstream's variables keep their meaning, but
the models in use are preloaded by us."""

import contextlib
import os
import sys

from mt_photos_ml.models.catalog import check, preloaded_by_upstream
from mt_photos_ml.runtime.immich import UpstreamChanged, upstream
from mt_photos_ml.settings import SettingsError, load

# compose passes what is not set as empty, which upstream takes for a value; an empty key is a mistake, and said to be
for _name in [name for name, value in os.environ.items() if not value and name != "API_AUTH_KEY"]:
    del os.environ[_name]


def _number(name: str, default: int, most: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal() or not 1 <= int(value) <= most:
        raise SettingsError(f"{name}={value}: expected a whole number from 1 to {most}")
    return int(value)


try:
    _settings = load()
    check(_settings)
    _port = _number("IMMICH_PORT", 3003, 65535)
    workers = _number("MACHINE_LEARNING_WORKERS", 1, 64)
    timeout = _number("MACHINE_LEARNING_WORKER_TIMEOUT", 300, 86400)
    # what is in use we preload ourselves; upstream, which reads its lists now, at the import, gets the rest of them.
    # Where Immich uses the container too it gets all: its models are its own.
    _given = dict(os.environ)
    _rest = preloaded_by_upstream(_settings) if _settings.immich_api != "open" else {}
    for _name in [name for name in _given if name.upper() in _rest]:
        del os.environ[_name]
    os.environ.update({name: models for name, models in _rest.items() if models})
    _Upstreams = upstream("immich_ml.config", "CustomUvicornWorker")
    for _name in _rest:
        os.environ.pop(_name, None)
    os.environ.update(_given)
except (SettingsError, UpstreamChanged) as error:
    sys.exit(f"mt-photos-ml: {error}")
except ValueError as error:  # pydantic's, of upstream's own settings
    sys.exit(f"mt-photos-ml: a MACHINE_LEARNING_ variable can't be used: {' '.join(str(error).split())}")


class Worker(_Upstreams):  # type: ignore[misc, valid-type]
    """Upstream's, with the parser of HTTP that refuses endless headers; the other takes them all."""

    CONFIG_KWARGS = {**_Upstreams.CONFIG_KWARGS, "http": "h11", "ws": "none"}  # noqa: RUF012


with contextlib.suppress(ImportError):  # shares graphics cards out to the workers, where this upstream does
    from immich_ml.gunicorn_conf import pre_fork as pre_fork

_host = os.environ.get("IMMICH_HOST", "[::]")
if ":" in _host and not _host.startswith("["):
    _host = f"[{_host}]"

wsgi_app = "immich_ml.main:app"
bind = f"{_host}:{_port}"
worker_class = Worker
worker_tmp_dir = "/tmp"  # the one place that a read-only container can write
control_socket_disable = True  # it would be written into the working directory
keepalive = 75  # longer than clients keep a connection for reuse, else their next request meets a closed one
graceful_timeout = 60  # for requests in flight when the service ends or starts afresh
loglevel = "warning"
