"""What machines ask of every replica again and again: health, metrics, the inventory.

Answered without FastAPI, whose import takes longer than the rest of a start together: the first
request for something else imports it (documented.py). Documented there all the same.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Scope, Send

from serving.endpoint import error_body, method_not_allowed
from serving.errors import RequestError
from serving.headers import JSON, Pair
from serving.inventory import Inventory
from serving.metrics import Metrics
from serving.runner import Runner

# Status, content type, body.
Said = tuple[int, bytes, bytes]
_JSON = JSON[1]


@dataclass(frozen=True)
class Probe:
    """A path that answers GET with what say() returns.

    say: its docstring is the path's documentation; may raise RequestError. type: of the answer.
    """

    path: str
    tag: str
    say: Callable[[], Said]
    type: Any = dict[str, Any]

    async def __call__(self, scope: Scope, _: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            self._check(scope["method"])
            status, content_type, body = self.say()
        except RequestError as error:
            await answer_error(send, error)
        except Exception:
            await answer_error(send, RequestError(500, "internal error"))
            raise  # uvicorn logs it
        else:
            await _answer(send, status, [(b"content-type", content_type)], body)

    def _check(self, method: str) -> None:
        if method != "GET":
            raise method_not_allowed(self.path, method, "GET")


async def answer_error(send: Send, error: RequestError) -> None:
    """Answer an error in the form that all have."""
    headers = [(name.encode(), value.encode()) for name, value in error.headers.items()]
    await _answer(send, error.status, [JSON, *headers], error_body(error.message))


async def _answer(send: Send, status: int, headers: list[Pair], body: bytes) -> None:
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def health(runner: Runner) -> list[Probe]:
    """Return what Kubernetes and load balancers ask."""

    def health() -> Said:
        """Say that the process answers, in the book's words."""
        return 200, _JSON, b'{"health":"ok"}'

    def live() -> Said:
        """Say that the process answers."""
        return 200, _JSON, b'{"live":true}'

    def ready() -> Said:
        """Say whether the golden rows came out right in this process; 503 until they did."""
        return (200, _JSON, b'{"ready":true}') if runner.ready else (503, _JSON, b'{"ready":false}')

    return [
        Probe("/health", "health", health, dict[str, str]),
        Probe("/v2/health/live", "health", live, dict[str, bool]),
        Probe("/v2/health/ready", "health", ready, dict[str, bool]),
    ]


def operations(metrics: Metrics, inventory: Inventory) -> list[Probe]:
    """Return what those who run the service ask."""

    def prometheus_metrics() -> Said:
        """Answer Prometheus."""
        from serving.exposition import CONTENT_TYPE, exposition  # noqa: PLC0415 - as it says

        return 200, CONTENT_TYPE.encode(), exposition(metrics)

    def what_runs() -> Said:
        """Say what this process is and which model it serves."""
        return 200, _JSON, json.dumps(inventory.describe(), ensure_ascii=False).encode()

    return [
        Probe("/metrics", "operations", prometheus_metrics, str),
        Probe("/inventory", "operations", what_runs),
    ]
