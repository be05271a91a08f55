"""The hot endpoints in /openapi.json: what FastAPI does not route, the contract describes.

Used by app.py. The schemas are those of the decoder, so they cannot differ from it.
"""

from functools import partial
from typing import Any

import numpy as np

from serving.contract import Contract
from serving.rows import Rows

# An image as an example would make a document of megabytes.
_LARGEST_EXAMPLE = 1000
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}
_ERRORS = {
    "400": "the body is not what the contract allows; `error` names the field",
    "413": "the body or the number of rows is over the limit",
    "503": "the model is not loaded yet, or the server stops",
}
_HEADERS = {
    name: {"description": what, "schema": {"type": "string"}}
    for name, what in (
        ("Model-Name", "name of the model that made the prediction"),
        ("Model-Version", "its version"),
        ("Model-Sha256", "sha256 of its file"),
    )
}


def predict_paths(contract: Contract, rows: Rows) -> dict[str, Any]:
    """Return the OpenAPI paths of the predict endpoints that a model has."""
    described = partial(_operation, rows, contract.sample()[0][contract.inputs[0].name])
    labels, rank = contract.prediction.labels, len(contract.prediction.shape)
    number = {"type": ["number", "null"]}
    row = _nested(number, max(1, rank - 1))
    paths = {"/predict": {"post": described("Predict for each row", row)}}
    if labels and rank > 1:
        label = _nested({"type": ["string", "null"], "enum": [*labels, None]}, rank - 2)
        paths["/predict/label"] = {"post": described("Predict a label for each row", label)}
    return paths


def _nested(item: dict[str, Any], depth: int) -> dict[str, Any]:
    """Return the schema of lists of lists, so deep, of an item."""
    return item if depth == 0 else {"type": "array", "items": _nested(item, depth - 1)}


def _operation(rows: Rows, example: Any, summary: str, item: dict[str, Any]) -> dict[str, Any]:
    """Return the description of an endpoint that answers an item for each row."""
    prediction = {"type": "array", "description": "one item a row, in order", "items": item}
    content: dict[str, Any] = {"schema": rows.schema()}
    if np.size(example) <= _LARGEST_EXAMPLE:
        content["example"] = {"data": example}
    return {
        "tags": ["predict"],
        "summary": summary,
        "requestBody": {
            "required": True,
            "content": {"application/json": content},
        },
        "responses": {
            "200": {
                "description": "a prediction for each row",
                "headers": _HEADERS,
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "required": ["prediction"],
                            "properties": {"prediction": prediction},
                        }
                    }
                },
            },
            **{
                status: {
                    "description": why,
                    "content": {"application/json": {"schema": _ERROR}},
                }
                for status, why in _ERRORS.items()
            },
        },
    }
