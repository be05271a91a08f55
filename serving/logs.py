"""Logs: one JSON object a line on stderr, a constant event and its facts as fields.

Configured once a process, by process.py. Never holds inputs, predictions or credentials.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from artifact.redact import redact_all

_OWN = "serving"


class JsonFormatter(logging.Formatter):
    """Format our own events and what libraries log in the same way."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
        }
        if record.name == _OWN:
            line |= {"event": record.msg, **getattr(record, "fields", {})}
        else:
            line |= {"event": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        # The last line of defence: libraries log URIs, too.
        return json.dumps(redact_all(line), ensure_ascii=False)


def configure(level: str) -> None:
    """Send every logger's records at or above `level` to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # Their progress is said by our own events; their warnings are wanted.
    for name in ("gunicorn.error", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


def info(event: str, **fields: Any) -> None:
    """Log a constant event that an operator may want to know of, with its facts as fields."""
    logging.getLogger(_OWN).info(event, extra={"fields": fields})


def error(event: str, **fields: Any) -> None:
    """Log a constant event that an operator has to look at, with its facts as fields."""
    logging.getLogger(_OWN).error(event, extra={"fields": fields})
