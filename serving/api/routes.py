"""FastAPI routers for paths that are requested rarely: model description, documentation, page.

Their errors have the same form as the errors of the fast path: `{"error": …}`.
"""

from collections.abc import Awaitable, Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from artifact.contract import arrays
from artifact.software import other_versions
from serving.api import openapi
from serving.errors import RequestError
from serving.http import metadata
from serving.http.endpoint import error_body, method_not_allowed
from serving.http.headers import ModelHeaders
from serving.http.infer import check_name
from serving.http.predict import Encode, rows_codec_of
from serving.http.probes import Probe
from serving.inference.batcher import Batcher
from serving.inference.codecs.rows import RowsCodec
from serving.inference.model import Model
from serving.inference.request import InferenceRequest

DOCS_ASSETS = "/docs/assets"
_PAGE = Path(__file__).parent / "page"
_MEDIA_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_PAGE_HEADERS = {
    # Second line of defence: if text from a contract became markup, it could not run a script.
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    # A cached page of an old server must not send requests to a newer server.
    "Cache-Control": "no-store",
}


def _not_found(description: str) -> dict[int | str, dict[str, Any]]:
    return {404: {"description": description, "content": openapi.ERROR_CONTENT}}


_NO_SUCH_MODEL = _not_found("This server serves another model or version.")
_NOT_FOR_THIS_MODEL = _not_found("The model has no labels, or its input is not rows of numbers.")


def probes(probes: Iterable[Probe]) -> APIRouter:
    """Return a router that documents the probes. Requests reach them before FastAPI."""
    router = APIRouter()
    for probe in probes:
        response_class = PlainTextResponse if probe.response_type is str else JSONResponse
        router.add_api_route(
            probe.path,
            probe.handler,
            tags=[probe.tag],
            summary=probe.summary,
            response_model=probe.response_type,
            response_class=response_class,
        )
    return router


def description(batcher: Batcher) -> APIRouter:
    """Return the router that describes the model and predicts the sample in its contract."""
    router = APIRouter(tags=["model"], responses=_NOT_FOR_THIS_MODEL)

    @router.get("/metadata", summary="Describe the model")
    async def get_metadata() -> dict[str, Any]:
        """Return the model's name, version, purpose, inputs, outputs, and a sample of each.

        `degraded` is null, or the reason why an older version than the intended one is served.
        `other_versions` lists the libraries whose version differs from the one in training.
        """
        contract = batcher.model.contract
        return {
            **metadata.metadata(contract),
            "other_versions": other_versions(contract.origin.environment),
            "degraded": batcher.degraded,
        }

    @router.get("/label", summary="List the labels")
    async def get_labels() -> dict[str, str]:
        """Return the labels of a classifier by index."""
        return metadata.labels(batcher.model.contract)

    @router.get("/predict/test", summary="Predict the sample")
    async def predict_sample() -> Response:
        """Return the prediction for `data_sample` of /metadata."""
        return await _sample_prediction(batcher, RowsCodec.encode, needs_labels=False)

    @router.get("/predict/test/label", summary="Predict the label of the sample")
    async def predict_sample_label() -> Response:
        """Return the predicted label for `data_sample` of /metadata."""
        return await _sample_prediction(batcher, RowsCodec.encode_labels, needs_labels=True)

    return router


def open_inference(batcher: Batcher) -> APIRouter:
    """Return the router for the metadata paths of the Open Inference Protocol."""
    router = APIRouter(tags=["open inference protocol"], responses=_NO_SUCH_MODEL)

    def served_model(name: str, version: str | None) -> Model:
        model = batcher.model
        check_name(model, name if version is None else f"{name}/versions/{version}")
        return model

    @router.get("/v2", summary="Describe the server")
    async def server_metadata() -> dict[str, Any]:
        """Return the server's name, version, and protocol extensions."""
        return metadata.server_metadata()

    @router.get("/v2/models/{name}", summary="Describe the model's tensors")
    @router.get("/v2/models/{name}/versions/{version}", summary="Describe the model's tensors")
    async def model_metadata(name: str, version: str | None = None) -> dict[str, Any]:
        """Return the name, datatype, and shape of each tensor. A dynamic dimension is -1."""
        return metadata.model_metadata(served_model(name, version).contract)

    @router.get("/v2/models/{name}/ready", summary="Check the model's readiness")
    @router.get("/v2/models/{name}/versions/{version}/ready", summary="Check the model's readiness")
    async def model_ready(name: str, version: str | None = None) -> dict[str, Any]:
        """Return 200 once this process reproduced the model's golden rows, 503 before."""
        return {"name": served_model(name, version).contract.name, "ready": True}

    return router


def documentation() -> APIRouter:
    """Return the router for /docs. Its assets are served from here: clusters may be offline."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="API",
            swagger_js_url=f"{DOCS_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{DOCS_ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{DOCS_ASSETS}/favicon.png",
        )

    return router


def page() -> APIRouter:
    """Return the router for the page at `/`, which fetches its data from the JSON endpoints."""
    router = APIRouter(include_in_schema=False)
    # Not StaticFiles: its ETag is made of a file's date and size, and in an image every file has
    # the same date, so a browser could keep the file of an older image.
    paths = [path for path in _PAGE.iterdir() if path.suffix in _MEDIA_TYPES]
    files = {path.name: path.read_bytes() for path in paths}

    def file_response(name: str) -> Response:
        media_type = _MEDIA_TYPES[Path(name).suffix]
        return Response(files[name], headers=_PAGE_HEADERS, media_type=media_type)

    @router.get("/")
    async def index() -> Response:
        return file_response("index.html")

    @router.get("/page/{name}")
    async def file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return file_response(name)

    return router


def docs_assets() -> Path:
    """Return the directory of Swagger UI's files."""
    # Only the files of fastapi-offline are used. Importing it is not necessary, and costs time.
    package = find_spec("fastapi_offline")
    if package is None or package.origin is None:
        raise RuntimeError("package fastapi-offline: expected to be installed, not found")
    return Path(package.origin).parent / "static"


def add_error_handlers(app: FastAPI) -> None:
    """Make an application respond to every error with `{"error": …}`."""

    def error_response(status: int, message: str, headers: Any = None) -> Response:
        return Response(error_body(message), status, headers, media_type="application/json")

    async def on_request_error(_: Request, error: Any) -> Response:
        return error_response(error.status, error.message, error.headers)

    async def on_http_exception(request: Request, error: Any) -> Response:
        message, path = str(error.detail), request.url.path
        if error.status_code == 404:
            message = f"{path}: no such path"
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            message = method_not_allowed(path, request.method, allowed).message
        return error_response(error.status_code, message, error.headers)

    async def on_exception(_: Request, __: Exception) -> Response:
        return error_response(500, "internal error")

    handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        RequestError: on_request_error,
        HTTPException: on_http_exception,
        Exception: on_exception,
    }
    for error_class, handler in handlers.items():
        app.add_exception_handler(error_class, handler)


async def _sample_prediction(batcher: Batcher, encode: Encode, *, needs_labels: bool) -> Response:
    model = batcher.model
    rows = rows_codec_of(model, needs_labels=needs_labels)
    sample = arrays(model.contract.inputs, model.contract.sample()[0])
    outputs = await batcher.run(model, InferenceRequest(sample, model.output_names))
    headers = {
        name.decode(): value.decode() for name, value in ModelHeaders(model.contract).json.pairs
    }
    return Response(encode(rows, outputs), headers=headers)
