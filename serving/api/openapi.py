"""Describe the fast path for /openapi.json: the predict and infer endpoints.

FastAPI does not route these endpoints, so it cannot describe them. The request schemas come from
the decoders that check the requests, so the documentation cannot differ from the behaviour.
"""

from functools import partial
from typing import Any

import numpy as np

from artifact.contract import Contract, arrays
from serving.http.infer import PREFIX, SUFFIX
from serving.inference.codecs.open_inference import OpenInferenceCodec
from serving.inference.codecs.rows import RowsCodec
from serving.inference.codecs.tensor_codec import DATATYPES
from serving.inference.model import Model

# An image as an example would make the document megabytes long.
_MAX_EXAMPLE_VALUES = 1000
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}
ERROR_CONTENT = {"application/json": {"schema": _ERROR}}
_ERRORS = {
    "400": "The body does not match the model's inputs. `error` names the field.",
    "413": "The body or the number of rows exceeds the limit.",
    "415": "The Content-Encoding is neither gzip nor deflate.",
    "503": "The model is not loaded yet, or the server is stopping.",
}
_HEADERS = {
    name: {"description": description, "schema": {"type": "string"}}
    for name, description in (
        ("Model-Name", "Name of the model that made the prediction."),
        ("Model-Version", "Version of the model."),
        ("Model-Sha256", "SHA-256 of the model file."),
    )
}


def fast_paths(model: Model) -> dict[str, Any]:
    """Return the OpenAPI paths of the fast path that a model supports."""
    paths = _predict_paths(model.contract, model.rows_codec) if model.rows_codec else {}
    infer = {"post": _infer_operation(model.contract, model.open_inference_codec)}
    return paths | {f"{PREFIX}{path}{SUFFIX}": infer for path in sorted(model.path_names)}


def without_validation_errors(document: dict[str, Any]) -> dict[str, Any]:
    """Return FastAPI's document without the 422 responses that it adds to paths with parameters.

    All parameters are strings, so FastAPI never rejects one.
    """
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    document.pop("components", None)
    return document


def _predict_paths(contract: Contract, rows: RowsCodec) -> dict[str, Any]:
    sample = contract.sample()[0][contract.required_inputs[0].name]
    operation = partial(_predict_operation, rows, sample)
    labels, rank = contract.prediction.labels, len(contract.prediction.shape)
    # NaN and infinities are returned as null.
    number = {"type": ["number", "null"]}
    row = _nested(number, max(1, rank - 1))
    paths = {"/predict": {"post": operation("Predict each row", row)}}
    if labels and rank > 1:
        label = _nested({"type": ["string", "null"], "enum": [*labels, None]}, rank - 2)
        paths["/predict/label"] = {"post": operation("Predict a label for each row", label)}
    return paths


def _nested(item: dict[str, Any], depth: int) -> dict[str, Any]:
    """Return the schema of an item inside `depth` levels of lists."""
    return item if depth == 0 else {"type": "array", "items": _nested(item, depth - 1)}


def _predict_operation(
    rows: RowsCodec, sample: Any, summary: str, item: dict[str, Any]
) -> dict[str, Any]:
    """Describe an endpoint that returns one item for each row."""
    content: dict[str, Any] = {"schema": rows.schema()}
    if np.size(sample) <= _MAX_EXAMPLE_VALUES:
        content["example"] = {"data": sample}
    prediction = {"type": "array", "description": "One item per row, in order.", "items": item}
    response = {
        "type": "object",
        "required": ["prediction"],
        "properties": {"prediction": prediction},
    }
    return _operation("predict", summary, content, "The predictions.", response)


def _infer_operation(contract: Contract, tensors: OpenInferenceCodec) -> dict[str, Any]:
    """Describe the inference endpoint of the Open Inference Protocol."""
    content: dict[str, Any] = {"schema": tensors.schema()}
    sample = arrays(contract.inputs, contract.sample()[0])
    is_small = sum(array.size for array in sample.values()) <= _MAX_EXAMPLE_VALUES
    # JSON has no NaN and no infinity.
    is_finite = all(
        np.isfinite(array).all() for array in sample.values() if array.dtype.kind == "f"
    )
    if is_small and is_finite:
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
    response = {
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
    return _operation(
        "open inference protocol", "Infer from tensors", content, "The output tensors.", response
    )


def _operation(
    tag: str, summary: str, content: dict[str, Any], description: str, response: dict[str, Any]
) -> dict[str, Any]:
    """Describe a POST endpoint, including the errors that every POST endpoint has.

    description: of the successful response.
    """
    return {
        "tags": [tag],
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": content}},
        "responses": {
            "200": {
                "description": description,
                "headers": _HEADERS,
                "content": {"application/json": {"schema": response}},
            },
            **{
                status: {"description": cause, "content": ERROR_CONTENT}
                for status, cause in _ERRORS.items()
            },
        },
    }
