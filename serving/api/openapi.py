"""The hot endpoints in /openapi.json: what FastAPI does not route, the contract describes.

Used by app.py. The schemas are those of the decoders, so they cannot differ from them.
"""

from functools import partial
from typing import Any

import numpy as np

from artifact.contract import Contract, arrays
from serving.http.infer import PREFIX, SUFFIX
from serving.inference.codecs.open_inference import Tensors
from serving.inference.codecs.rows import Rows
from serving.inference.codecs.tensor_codec import DATATYPES
from serving.inference.model import Model

# An image as an example would make a document of megabytes.
_LARGEST_EXAMPLE = 1000
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}
ERROR_CONTENT = {"application/json": {"schema": _ERROR}}
_ERRORS = {
    "400": "the body is not what the contract allows; `error` names the field",
    "413": "the body or the number of rows is over the limit",
    "415": "the body has another Content-Encoding than gzip or deflate",
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


def hot_paths(model: Model) -> dict[str, Any]:
    """Return the OpenAPI paths of the hot endpoints that a model has."""
    paths = _predict_paths(model.contract, model.rows) if model.rows else {}
    infer = {"post": _infer(model.contract, model.tensors)}
    return paths | {f"{PREFIX}{path}{SUFFIX}": infer for path in sorted(model.paths)}


def without_validation_errors(document: dict[str, Any]) -> dict[str, Any]:
    """Return FastAPI's document without the 422 that it adds to each path with a parameter.

    No parameter here has a type that can be wrong.
    """
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    document.pop("components", None)
    return document


def _predict_paths(contract: Contract, rows: Rows) -> dict[str, Any]:
    operation = partial(_operation, rows, contract.sample()[0][contract.required_inputs[0].name])
    labels, rank = contract.prediction.labels, len(contract.prediction.shape)
    number = {"type": ["number", "null"]}
    row = _nested(number, max(1, rank - 1))
    paths = {"/predict": {"post": operation("Predict for each row", row)}}
    if labels and rank > 1:
        label = _nested({"type": ["string", "null"], "enum": [*labels, None]}, rank - 2)
        paths["/predict/label"] = {"post": operation("Predict a label for each row", label)}
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
    answer = {
        "type": "object",
        "required": ["prediction"],
        "properties": {"prediction": prediction},
    }
    return _described("predict", summary, content, "a prediction for each row", answer)


def _infer(contract: Contract, tensors: Tensors) -> dict[str, Any]:
    """Return the description of the inference endpoint of the Open Inference Protocol."""
    content: dict[str, Any] = {"schema": tensors.schema()}
    sample = arrays(contract.inputs, contract.sample()[0])
    small = sum(array.size for array in sample.values()) <= _LARGEST_EXAMPLE
    # JSON has no word for what is no number.
    if small and all(np.isfinite(one).all() for one in sample.values() if one.dtype.kind == "f"):
        content["example"] = {
            "inputs": [
                {
                    "name": tensor.name,
                    "shape": list(sample[tensor.name].shape),
                    "datatype": DATATYPES[tensor.dtype],
                    "data": sample[tensor.name].ravel().tolist(),
                }
                for tensor in contract.inputs
                if tensor.name in sample
            ]
        }
    answer = {
        "type": "object",
        "required": ["model_name", "model_version", "id", "outputs"],
        "properties": {
            "model_name": {"const": contract.name},
            "model_version": {"const": contract.version},
            "id": {"type": "string"},
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "datatype", "shape"],
                    "properties": {
                        "name": {"enum": [tensor.name for tensor in contract.outputs]},
                        "datatype": {"type": "string"},
                        "shape": {"type": "array", "items": {"type": "integer"}},
                        "data": {"type": "array"},
                        "parameters": {"type": "object"},
                    },
                },
            },
        },
    }
    return _described(
        "open inference protocol", "Infer from tensors", content, "the outputs", answer
    )


def _described(
    tag: str, summary: str, content: dict[str, Any], what: str, answer: dict[str, Any]
) -> dict[str, Any]:
    """Return the description of a POST endpoint, with the errors that all have."""
    return {
        "tags": [tag],
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": content}},
        "responses": {
            "200": {
                "description": what,
                "headers": _HEADERS,
                "content": {"application/json": {"schema": answer}},
            },
            **{
                status: {
                    "description": why,
                    "content": ERROR_CONTENT,
                }
                for status, why in _ERRORS.items()
            },
        },
    }
