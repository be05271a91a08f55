"""What is asked now and then, as FastAPI routers: the model's description, docs, the page.

Put together by documented.py. Their errors have the same form as those of the hot paths.
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
from serving.http.endpoint import error_body, method_not_allowed
from serving.http.infer import check_name
from serving.http.metadata import labels, metadata, model_metadata, server_metadata
from serving.http.predict import Encode, rows_of
from serving.http.probes import Probe
from serving.inference.batcher import Runner
from serving.inference.codecs.rows import Rows
from serving.inference.model import Model
from serving.inference.request import Asked

DOCS_ASSETS = "/docs/assets"
_PAGE = Path(__file__).parent / "page"
_MEDIA_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_PAGE_HEADERS = {
    # Should a word of a contract ever become markup, it stays without effect.
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    # Nor is a page of one server version to ask another, newer one.
    "Cache-Control": "no-store",
}


def _responses(why: str) -> dict[int | str, dict[str, Any]]:
    return {404: {"description": why, "content": openapi.ERROR_CONTENT}}


_NO_SUCH_MODEL = _responses("another model or version")
_NOT_FOR_THIS_MODEL = _responses("the model has no labels, or no rows of numbers")


def probes(asked: Iterable[Probe]) -> APIRouter:
    """Return the probes, for the documentation: app.py answers them itself."""
    router = APIRouter()
    for probe in asked:
        response_class = PlainTextResponse if probe.type is str else JSONResponse
        router.add_api_route(
            probe.path,
            probe.say,
            tags=[probe.tag],
            response_model=probe.type,
            response_class=response_class,
        )
    return router


def description(runner: Runner) -> APIRouter:
    """Return the paths that describe the model and predict for its own sample."""
    router = APIRouter(tags=["model"], responses=_NOT_FOR_THIS_MODEL)

    @router.get("/metadata")
    async def model_metadata() -> dict[str, Any]:
        """Describe the model: inputs, outputs, a sample of each, purpose and version.

        `degraded` says why it is not the version that should be served, null when it is;
        `other_versions` what training ran on and this server does not.
        """
        contract = runner.model.contract
        return {
            **metadata(contract),
            "other_versions": other_versions(contract.origin.environment),
            "degraded": runner.degraded,
        }

    @router.get("/label")
    async def model_labels() -> dict[str, str]:
        """List a classifier's labels by index."""
        return labels(runner.model.contract)

    @router.get("/predict/test")
    async def predict_test() -> Response:
        """Predict for the sample that /metadata shows."""
        return await _sample_prediction(runner, Rows.encode, needs_labels=False)

    @router.get("/predict/test/label")
    async def predict_test_label() -> Response:
        """Predict a label for the sample that /metadata shows."""
        return await _sample_prediction(runner, Rows.encode_labels, needs_labels=True)

    return router


def open_inference(runner: Runner) -> APIRouter:
    """Return the paths of the Open Inference Protocol that describe server and model."""
    router = APIRouter(tags=["open inference protocol"], responses=_NO_SUCH_MODEL)

    def served(name: str, version: str | None) -> Model:
        model = runner.model
        check_name(model, name if version is None else f"{name}/versions/{version}")
        return model

    @router.get("/v2")
    async def about_the_server() -> dict[str, Any]:
        """Describe the server."""
        return server_metadata()

    @router.get("/v2/models/{name}")
    @router.get("/v2/models/{name}/versions/{version}")
    async def about_the_model(name: str, version: str | None = None) -> dict[str, Any]:
        """Describe the model's tensors; a dynamic dimension is -1."""
        return model_metadata(served(name, version).contract)

    @router.get("/v2/models/{name}/ready")
    @router.get("/v2/models/{name}/versions/{version}/ready")
    async def model_ready(name: str, version: str | None = None) -> dict[str, Any]:
        """Say that the model's golden rows came out right in this process; 503 until they did."""
        return {"name": served(name, version).contract.name, "ready": True}

    return router


def documentation() -> APIRouter:
    """Return /docs, whose files are served from here: clusters have no internet."""
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
    """Return the page for people, which is made in their browser of what the other paths say.

    Not by StaticFiles: that tells versions of a file apart by its date and size, and every file
    of an image is of 1970.
    """
    router = APIRouter(include_in_schema=False)
    found = [path for path in _PAGE.iterdir() if path.suffix in _MEDIA_TYPES]
    files = {path.name: path.read_bytes() for path in found}

    def answer(name: str) -> Response:
        media_type = _MEDIA_TYPES[Path(name).suffix]
        return Response(files[name], headers=_PAGE_HEADERS, media_type=media_type)

    @router.get("/")
    async def index() -> Response:
        return answer("index.html")

    @router.get("/page/{name}")
    async def file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return answer(name)

    return router


def docs_assets() -> Path:
    """Return the folder with Swagger UI's files, of a package that need not be imported."""
    package = find_spec("fastapi_offline")
    if package is None or package.origin is None:
        raise RuntimeError("the package fastapi-offline is not installed")
    return Path(package.origin).parent / "static"


def answer_errors_in_one_form(app: FastAPI) -> None:
    """Answer whatever an app refuses or fails at with `{"error": …}`."""

    def answer(status: int, message: str, headers: Any = None) -> Response:
        return Response(error_body(message), status, headers, media_type="application/json")

    async def refused(_: Request, error: Any) -> Response:
        return answer(error.status, error.message, error.headers)

    async def not_routed(request: Request, error: Any) -> Response:
        message, path = str(error.detail), request.url.path
        if error.status_code == 404:
            message = f"{path}: no such path"
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            message = method_not_allowed(path, request.method, allowed).message
        return answer(error.status_code, message, error.headers)

    async def failed(_: Request, __: Exception) -> Response:
        return answer(500, "internal error")

    handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        RequestError: refused,
        HTTPException: not_routed,
        Exception: failed,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


async def _sample_prediction(runner: Runner, encode: Encode, *, needs_labels: bool) -> Response:
    model = runner.model
    rows = rows_of(model, needs_labels=needs_labels)
    sample = arrays(model.contract.inputs, model.contract.sample()[0])
    outputs = await runner.run(model, Asked(sample, model.output_names))
    headers = {name.decode(): value.decode() for name, value in model.headers.pairs}
    return Response(encode(rows, outputs), headers=headers)
