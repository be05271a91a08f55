"""The FastAPI application: model description, documentation, and the page.

It also documents the fast path and the probes, which it does not serve. A worker imports this
module on the first request for one of its paths: importing FastAPI would delay the start.
"""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from serving.api import routes
from serving.api.openapi import fast_paths, without_validation_errors
from serving.http.probes import Probe
from serving.inference.batcher import Batcher

_DESCRIPTION = (
    "Send rows or tensors, receive predictions. "
    'Errors are `{"error": "…"}`; a 4xx status means that the request is wrong.'
)


class FastAPIApp(FastAPI):
    """Describes the model that a batcher serves. probes: the ones on the public port."""

    def __init__(self, batcher: Batcher, probes: Iterable[Probe]) -> None:
        super().__init__(
            description=_DESCRIPTION, docs_url=None, redoc_url=None, redirect_slashes=False
        )
        self._batcher = batcher
        # The sha256 of the contract that the cached document describes. A reference to the model
        # would keep the previous model in memory after a reload.
        self._documented_contract = ""
        for router in (
            routes.probes(probes),
            routes.description(batcher),
            routes.open_inference(batcher),
            routes.documentation(),
            routes.page(),
        ):
            self.include_router(router)
        routes.add_error_handlers(self)
        self.mount(routes.DOCS_ASSETS, StaticFiles(directory=routes.docs_assets()))

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, including the fast path of the current model."""
        model = self._batcher.model
        if model.contract_sha256 != self._documented_contract:
            contract = model.contract
            self.title, self.version, self.summary = (
                contract.name, contract.version, contract.purpose
            )  # fmt: skip
            # FastAPI caches its document here. Without a document it builds a new one.
            self.openapi_schema, self._documented_contract = None, model.contract_sha256
        document = without_validation_errors(super().openapi())
        return document | {"paths": fast_paths(model) | document["paths"]}
