"""The log: each line is a JSON object without secrets, also in records of libraries."""

import json
import logging
import sys
from typing import Any

from serving.logs import JsonFormatter

URI = "https://someone:hunter2@cdn/models/iris@stable"
SHOWN = "https://…@cdn/models/iris@stable"


def line(name: str, **record: Any) -> dict[str, Any]:
    """The object that the log has for a record of a logger."""
    made = logging.makeLogRecord({"name": name, **record})
    written: dict[str, Any] = json.loads(JsonFormatter().format(made))
    return written


def test_an_event_shows_no_credentials() -> None:
    fields = {"uri": URI, "nested": {"list": [URI]}, "seconds": 1.5, "none": None}

    written = line("serving", msg="event", fields=fields)

    assert written["event"] == "event"
    assert {name: written[name] for name in fields} == {
        "uri": SHOWN, "nested": {"list": [SHOWN]}, "seconds": 1.5, "none": None,
    }  # fmt: skip


def test_the_message_and_traceback_of_a_library_show_no_credentials() -> None:
    try:
        int(URI)
    except ValueError:
        written = line("uvicorn", msg="GET %s?sig=x", args=(URI,), exc_info=sys.exc_info())

    assert written["message"] == f"GET {SHOWN}?sig=…"
    assert written["traceback"].endswith(f"'{SHOWN}'")
