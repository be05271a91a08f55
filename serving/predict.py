"""The hot path: POST /predict and /predict/label, as plain ASGI callables.

app.py dispatches to them before FastAPI's stack, which costs 93 us a request where this
way costs 3 (DESIGN: "The hot path"). They are documented in /openapi.json all the same.
"""

import asyncio
import json
import time
import traceback
from collections.abc import Callable

from starlette.types import Message, Receive, Scope, Send

from serving import logs
from serving.contract import Array
from serving.errors import RequestError
from serving.metadata import no_labels
from serving.metrics import EndpointMetrics
from serving.model import Model
from serving.rows import Rows, why_no_rows
from serving.runner import Runner

_JSON = (b"content-type", b"application/json")

Encode = Callable[[Rows, list[Array]], bytes]


class ClientDisconnected(Exception):  # noqa: N818 - nobody's error
    """The client went away before its request was complete."""


class PredictEndpoint:
    """Rows in, `encode(outputs)` out, for the model that is served at the moment.

    needs_labels: whether the endpoint is for classifiers only.
    """

    def __init__(
        self,
        runner: Runner,
        metrics: EndpointMetrics,
        encode: Encode,
        *,
        needs_labels: bool,
        max_body_bytes: int,
    ) -> None:
        self._runner = runner
        self._metrics = metrics
        self._encode = encode
        self._needs_labels = needs_labels
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever happens, with JSON."""
        started = time.perf_counter()
        refused: RequestError | None = None
        try:
            status, headers, body = await self._answer(scope, receive)
        except RequestError as error:
            refused = error
        except ClientDisconnected:
            return
        except asyncio.CancelledError:
            refused = RequestError(503, "the server stopped before the request was complete")
        except Exception as error:  # noqa: BLE001 - the server's fault, said as 500 and logged
            _log_failure(scope["path"], error)
            refused = RequestError(500, "internal error")
        if refused:
            status, headers = refused.status, _encoded(refused.headers)
            body = error_body(refused.message)
        headers = [_JSON, (b"content-length", b"%d" % len(body)), *headers]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        self._metrics.observe(status, time.perf_counter() - started)

    async def _answer(
        self, scope: Scope, receive: Receive
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        if scope["method"] != "POST":
            raise method_not_allowed(scope["path"], scope["method"], "POST")
        model = self._runner.model
        rows = rows_of(model, needs_labels=self._needs_labels)
        body = await read_body(scope, receive, self._max_body_bytes)
        outputs = await self._runner.run(model, rows.decode(body))
        return 200, model.headers, self._encode(rows, outputs)


def rows_of(model: Model, *, needs_labels: bool) -> Rows:
    """Return a model's codec. Raises RequestError 404 when it cannot answer this path."""
    if model.rows is None:
        raise RequestError(404, str(why_no_rows(model.contract)))
    prediction = model.contract.prediction
    if needs_labels and not (prediction.labels and len(prediction.shape) > 1):
        raise no_labels(model.contract)
    return model.rows


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """Return a request's body, whole.

    Raises RequestError 413 once more than max_bytes came or were announced, and
    ClientDisconnected.
    """
    message = await receive()
    body: bytes = _body(message)
    if message.get("more_body", False):
        announced = _content_length(scope)
        if announced > max_bytes:
            raise _too_large(max_bytes, str(announced))
        pieces, size = [body], len(body)
        while message.get("more_body", False) and size <= max_bytes:
            message = await receive()
            pieces.append(_body(message))
            size += len(pieces[-1])
        body = b"".join(pieces)
    if len(body) > max_bytes:
        raise _too_large(max_bytes, "more")
    return body


def error_body(message: str) -> bytes:
    """Return the one form all errors have."""
    # A lone surrogate, which JSON can escape and UTF-8 cannot write, comes back as "?".
    return json.dumps({"error": message}, ensure_ascii=False).encode(errors="replace")


def method_not_allowed(path: str, method: str, allowed: str) -> RequestError:
    """Return the error for a method that a path does not have."""
    return RequestError(405, f"{path}: expected {allowed}, got {method}", {"allow": allowed})


def _log_failure(path: str, error: Exception) -> None:
    """Log where it failed, not what was said: onnxruntime's words may hold an input's values."""
    frames = [" ".join(frame.split()) for frame in traceback.format_tb(error.__traceback__)]
    logs.error("request_failed", endpoint=path, error=type(error).__name__, frames=frames)


def _body(message: Message) -> bytes:
    if message["type"] == "http.disconnect":
        raise ClientDisconnected
    body: bytes = message.get("body", b"")
    return body


def _content_length(scope: Scope) -> int:
    """Return the announced length; 0 without one. The server has checked that it is a number."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    return next((int(value) for name, value in headers if name == b"content-length"), 0)


def _too_large(max_bytes: int, came: str) -> RequestError:
    return RequestError(413, f"body: expected at most {max_bytes} bytes, got {came}")


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]
