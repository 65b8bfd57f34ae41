# SPDX-License-Identifier: AGPL-3.0-only
"""Builds the app of the service from its parts."""

import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette

from .api.errors import HANDLERS
from .api.middleware.access_log import AccessLogMiddleware
from .api.middleware.auth import ApiKeyMiddleware
from .api.middleware.body_limit import BodyLimitMiddleware
from .api.middleware.lifecycle import Lifecycle, LifecycleMiddleware
from .api.middleware.paths import PathsMiddleware
from .api.routes import Routes
from .api.uploads import MAX_UPLOADS, Uploads
from .api.upstream import Upstream
from .dashboard.metrics import Metrics
from .dashboard.routes import Dashboard
from .dashboard.status import Status
from .engine import Engine
from .engine.benchmark import measure
from .settings import Settings


def create_app(
    settings: Settings, lifecycle: Lifecycle, fallback: Upstream | None = None, *, is_exposed: bool = True
) -> Starlette:
    """Builds the service. settings: checked already. fallback: answers requests that no route of ours matches.
    is_exposed: whether other machines can reach it."""
    engine, metrics = Engine(settings, lifecycle.restart), Metrics()
    # two of the largest uploads, shared by the processes, but at least one for each
    max_bytes = max(2_000_000 // settings.workers, 1_000_000) * settings.max_upload_mb
    uploads = Uploads(max_bytes, MAX_UPLOADS // settings.workers)
    warnings = [settings.key_warning] if settings.key_warning and is_exposed else []
    routes = Routes(engine, uploads, lifecycle, warnings)
    dashboard = Dashboard(Status(engine, uploads, metrics, warnings), lambda: measure(engine))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with engine.running(), fallback.lifespan() if fallback is not None else contextlib.nullcontext():
            with lifecycle.signals():
                yield

    app = Starlette(routes=[*routes.all(), *dashboard.routes()], lifespan=lifespan, exception_handlers=HANDLERS)
    app.router.redirect_slashes = False
    if fallback is not None:
        app.router.default = fallback
    app.add_middleware(BodyLimitMiddleware, settings.max_upload_mb * 1_000_000)
    if not settings.open_to_all:
        also_open = {("POST", "/predict")} if fallback is not None and settings.immich_api == "open" else set()
        also_open |= {("GET", "/metrics")} if settings.metrics == "open" else set()
        app.add_middleware(ApiKeyMiddleware, settings.api_auth_key, also_open)
    app.add_middleware(LifecycleMiddleware, lifecycle)
    app.add_middleware(AccessLogMiddleware, settings.instance_name, [metrics.observe])
    app.add_middleware(PathsMiddleware, {route.path for route in routes.all() if "POST" in (route.methods or ())})
    return app
