# SPDX-License-Identifier: AGPL-3.0-only
"""Where the log goes: one line an event, to standard error, for a person or as JSON."""

import json
import logging
import time
from dataclasses import asdict

NO_DESCRIPTORS = "new connections have to wait: no file descriptors are left (ulimit -n), or no memory"

_TEXT = logging.Formatter("%(asctime)s %(levelname)s %(message)s")


class JsonFormatter(logging.Formatter):
    """An object a line: time (RFC 3339), level, message, instance; of a request its trace; of an error where it was."""

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
    """Tells once a minute, in words, that no connection can be accepted; asyncio tells it over and over."""

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
    """Our events from this level on, and what others, such as upstream's app, have to say. form: text or json.
    instance: the name of this service."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(instance) if form == "json" else _TEXT)
    logging.getLogger().handlers = [handler]
    logging.getLogger("mt_photos_ml").setLevel(level.upper())
    logging.getLogger("asyncio").filters = [_AcceptErrors()]
    for name in ("PIL", "python_multipart"):  # what is wrong with a photo or a form is in the request's own line
        logging.getLogger(name).setLevel(logging.CRITICAL)
