"""Logs: each line is a JSON object without secrets, also for the records of libraries."""

import json
import logging
import sys
from typing import Any

from serving.logs import JsonFormatter

URI = "https://someone:hunter2@cdn/models/iris@stable"
REDACTED = "https://…@cdn/models/iris@stable"


def line_of(name: str, **attributes: Any) -> dict[str, Any]:
    """The JSON object that is written for a record of a logger."""
    record = logging.makeLogRecord({"name": name, **attributes})
    line: dict[str, Any] = json.loads(JsonFormatter().format(record))
    return line


def test_an_event_contains_no_credentials() -> None:
    fields = {"uri": URI, "nested": {"list": [URI]}, "seconds": 1.5, "none": None}

    line = line_of("serving", msg="event", fields=fields)

    assert line["event"] == "event"
    assert {name: line[name] for name in fields} == {
        "uri": REDACTED, "nested": {"list": [REDACTED]}, "seconds": 1.5, "none": None,
    }  # fmt: skip


def test_the_message_and_traceback_of_a_library_contain_no_credentials() -> None:
    try:
        int(URI)
    except ValueError:
        line = line_of("uvicorn", msg="GET %s?sig=x", args=(URI,), exc_info=sys.exc_info())

    assert line["message"] == f"GET {REDACTED}?sig=…"
    assert line["traceback"].endswith(f"'{REDACTED}'")
