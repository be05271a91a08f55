"""The FastAPI application: everything that is not hot and no probe, and the documentation of all.

Imported and made by app.py in a worker that is first asked for any of it.
"""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from serving.api import routes
from serving.api.openapi import hot_paths, without_validation_errors
from serving.http.probes import Probe
from serving.inference.batcher import Runner

_DESCRIPTION = 'Rows in, rows out. Errors are `{"error": …}`; 4xx is the client\'s mistake.'


class Documented(FastAPI):
    """What can be asked of the model that a runner serves. probes: which are public."""

    def __init__(self, runner: Runner, probes: Iterable[Probe]) -> None:
        super().__init__(
            description=_DESCRIPTION, docs_url=None, redoc_url=None, redirect_slashes=False
        )
        self._runner = runner
        # Not the model: after a reload it would keep the one before in memory.
        self._described = ""
        for router in (
            routes.probes(probes),
            routes.description(runner),
            routes.open_inference(runner),
            routes.documentation(),
            routes.page(),
        ):
            self.include_router(router)
        routes.answer_errors_in_one_form(self)
        self.mount(routes.DOCS_ASSETS, StaticFiles(directory=routes.docs_assets()))

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, the hot endpoints described by the contract's rules."""
        model = self._runner.model
        if model.contract_sha256 != self._described:
            contract = model.contract
            self.title, self.version, self.summary = (
                contract.name, contract.version, contract.purpose
            )  # fmt: skip
            self.openapi_schema, self._described = None, model.contract_sha256
        document = without_validation_errors(super().openapi())
        return document | {"paths": hot_paths(model) | document["paths"]}
