"""Write logs to stderr: one JSON object per line, with a constant event and its facts as fields.

Logs never contain inputs, predictions, or credentials.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from artifact.redact import redact_all

_LOGGER = "serving"


class JsonFormatter(logging.Formatter):
    """Formats the events of the server, and the records of libraries, as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
        }
        if record.name == _LOGGER:
            line |= {"event": record.msg, **getattr(record, "fields", {})}
        else:
            line |= {"event": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        # Redact here and not only where events are logged: libraries log URIs, too.
        return json.dumps(redact_all(line), ensure_ascii=False)


def configure(level: str) -> None:
    """Send the records of all loggers at or above `level` to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # Only their warnings: the events of the server report the same progress.
    for name in ("gunicorn.error", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


def info(event: str, **fields: Any) -> None:
    """Log an event that an operator may want to know about."""
    logging.getLogger(_LOGGER).info(event, extra={"fields": fields})


def error(event: str, **fields: Any) -> None:
    """Log an event that needs an operator's attention."""
    logging.getLogger(_LOGGER).error(event, extra={"fields": fields})
