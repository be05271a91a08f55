"""Logs: one JSON object a line on stderr, a constant event and its facts as fields.

Configured once a process, by process.py. Never holds inputs or predictions.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

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
        return json.dumps(line, default=str, ensure_ascii=False)


def configure(level: str) -> None:
    """Send every logger's records at or above `level` to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # Their progress is said by our own events; their warnings are wanted.
    for name in ("gunicorn.error", "uvicorn.error", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


def log(level: int, event: str, *, exc_info: bool = False, **fields: Any) -> None:
    """Log a constant event with its facts as fields."""
    logging.getLogger(_OWN).log(level, event, extra={"fields": fields}, exc_info=exc_info)


def info(event: str, **fields: Any) -> None:
    """Log what an operator may want to know."""
    log(logging.INFO, event, **fields)


def error(event: str, *, exc_info: bool = False, **fields: Any) -> None:
    """Log what an operator has to look at."""
    log(logging.ERROR, event, exc_info=exc_info, **fields)
