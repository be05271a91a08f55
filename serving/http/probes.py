"""GET endpoints for machines: health, Prometheus metrics, and the inventory.

They are answered without FastAPI, because importing FastAPI takes longer than the rest of the
start. FastAPI only documents them: routes.py adds them to /openapi.json.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Scope, Send

from serving.errors import RequestError
from serving.http.endpoint import check_method, error_body, error_headers, respond
from serving.http.headers import JSON_HEADERS, Headers
from serving.http.inventory import Inventory
from serving.inference.batcher import Batcher
from serving.metrics.metrics import Metrics

# Status, headers, body.
Response = tuple[int, Headers, bytes]


@dataclass(frozen=True)
class Probe:
    """A GET endpoint as an ASGI application."""

    path: str
    # The group of the endpoint in the OpenAPI document.
    tag: str
    summary: str
    # Its docstring is the description in the OpenAPI document. May raise RequestError.
    handler: Callable[[], Response]
    # The type of the response's body in the OpenAPI document.
    response_type: Any = dict[str, Any]

    async def __call__(self, scope: Scope, _: Receive, send: Send) -> None:
        """Handle one request."""
        try:
            check_method(self.path, scope["method"], "GET")
            status, headers, body = self.handler()
        except RequestError as error:
            await send_error(send, error)
        except Exception:
            await send_error(send, RequestError(500, "internal error"))
            raise  # uvicorn logs it
        else:
            await respond(send, status, headers, body)


async def send_error(send: Send, error: RequestError) -> None:
    """Send an error as `{"error": …}`."""
    await respond(send, error.status, error_headers(error), error_body(error.message))


def health_probes(batcher: Batcher) -> list[Probe]:
    """Return the endpoints that Kubernetes and load balancers poll."""

    def health() -> Response:
        """Return 200 while the process runs, also before the model is loaded."""
        return 200, JSON_HEADERS, b'{"health":"ok"}'

    def live() -> Response:
        """Return 200 while the process runs, also before the model is loaded."""
        return 200, JSON_HEADERS, b'{"live":true}'

    def ready() -> Response:
        """Return 200 once this process reproduced the model's golden rows, 503 before."""
        if batcher.ready:
            return 200, JSON_HEADERS, b'{"ready":true}'
        return 503, JSON_HEADERS, b'{"ready":false}'

    return [
        Probe("/health", "health", "Check the process", health, dict[str, str]),
        Probe("/v2/health/live", "health", "Check liveness", live, dict[str, bool]),
        Probe("/v2/health/ready", "health", "Check readiness", ready, dict[str, bool]),
    ]


def operations_probes(metrics: Metrics, inventory: Inventory) -> list[Probe]:
    """Return the endpoints for operators."""

    def get_metrics() -> Response:
        """Return the metrics of all workers in Prometheus's text format."""
        # Importing prometheus_client would delay the start.
        from serving.metrics.prometheus import CONTENT_TYPE, render  # noqa: PLC0415

        return 200, Headers((b"content-type", CONTENT_TYPE.encode())), render(metrics)

    def get_inventory() -> Response:
        """Return what runs: the model, packages, settings, and operating system of this process.

        Everything is read from the running process and from the contract of its model, never
        from a manifest.
        """
        return 200, JSON_HEADERS, json.dumps(inventory.describe(), ensure_ascii=False).encode()

    return [
        Probe("/metrics", "operations", "Get the metrics", get_metrics, str),
        Probe("/inventory", "operations", "Get the inventory", get_inventory),
    ]
