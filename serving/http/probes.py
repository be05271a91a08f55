"""What machines ask of every replica again and again: health, metrics, the inventory.

Answered without FastAPI, whose import takes longer than the rest of a start together: the first
request for something else imports it (documented.py). Documented there all the same.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Scope, Send

from serving.errors import RequestError
from serving.http.endpoint import check_method, error_body, error_headers, respond
from serving.http.headers import OF_JSON, Headers
from serving.http.inventory import Inventory
from serving.inference.batcher import Runner
from serving.metrics.metrics import Metrics

# Status, headers, body.
Said = tuple[int, Headers, bytes]


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
            check_method(self.path, scope["method"], "GET")
            status, headers, body = self.say()
        except RequestError as error:
            await answer_error(send, error)
        except Exception:
            await answer_error(send, RequestError(500, "internal error"))
            raise  # uvicorn logs it
        else:
            await respond(send, status, headers, body)


async def answer_error(send: Send, error: RequestError) -> None:
    """Answer an error in the form that all have."""
    await respond(send, error.status, error_headers(error), error_body(error.message))


def health(runner: Runner) -> list[Probe]:
    """Return what Kubernetes and load balancers ask."""

    def health() -> Said:
        """Say that the process answers, in the book's words."""
        return 200, OF_JSON, b'{"health":"ok"}'

    def live() -> Said:
        """Say that the process answers."""
        return 200, OF_JSON, b'{"live":true}'

    def ready() -> Said:
        """Say whether the golden rows came out right in this process; 503 until they did."""
        if runner.ready:
            return 200, OF_JSON, b'{"ready":true}'
        return 503, OF_JSON, b'{"ready":false}'

    return [
        Probe("/health", "health", health, dict[str, str]),
        Probe("/v2/health/live", "health", live, dict[str, bool]),
        Probe("/v2/health/ready", "health", ready, dict[str, bool]),
    ]


def operations(metrics: Metrics, inventory: Inventory) -> list[Probe]:
    """Return what those who run the service ask."""

    def prometheus_metrics() -> Said:
        """Answer Prometheus."""
        from serving.metrics.prometheus import CONTENT_TYPE, exposition  # noqa: PLC0415 - as it says

        return 200, Headers((b"content-type", CONTENT_TYPE.encode())), exposition(metrics)

    def what_runs() -> Said:
        """Say what this process is and which model it serves."""
        return 200, OF_JSON, json.dumps(inventory.describe(), ensure_ascii=False).encode()

    return [
        Probe("/metrics", "operations", prometheus_metrics, str),
        Probe("/inventory", "operations", what_runs),
    ]
