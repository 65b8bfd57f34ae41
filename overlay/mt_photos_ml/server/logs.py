# SPDX-License-Identifier: AGPL-3.0-only
"""Writes the log to standard error, one line an event, as text or as JSON."""

import json
import logging
import time
from dataclasses import asdict

NO_DESCRIPTORS = "new connections have to wait: no file descriptors (ulimit -n) or no memory left"

_TEXT = logging.Formatter("%(asctime)s %(levelname)s %(message)s")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339), level, message, instance; a request's trace; an error's traceback."""

    def __init__(self, instance: str) -> None:
        super().__init__()
        self._instance = instance

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{when}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "instance": self._instance,
        }
        if (request := getattr(record, "trace", None)) is not None:
            known = {name: value for name, value in asdict(request).items() if value is not None and name != "started"}
            line["request"] = {name: round(v, 1) if isinstance(v, float) else v for name, v in known.items()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _AcceptErrors(logging.Filter):
    """Logs plainly, and only once a minute, that no connection can be accepted; asyncio repeats it all the time."""

    def __init__(self) -> None:
        super().__init__()
        self._silent_until = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.msg.startswith("socket.accept() out of system resource"):
            return True
        now = time.monotonic()
        if now < self._silent_until:
            return False
        self._silent_until, record.msg, record.exc_info = now + 60, NO_DESCRIPTORS, None
        return True


def to_stderr(level: str, form: str = "text", instance: str = "") -> None:
    """Sets up the log for our events from this level on, and for those of others, such as upstream's app. form: text or
    json. instance: the name of this service."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(instance) if form == "json" else _TEXT)
    logging.getLogger().handlers = [handler]
    logging.getLogger("mt_photos_ml").setLevel(level.upper())
    logging.getLogger("asyncio").filters = [_AcceptErrors()]
    for name in ("PIL", "python_multipart"):  # the request's own line says what is wrong with its photo or form
        logging.getLogger(name).setLevel(logging.CRITICAL)
