"""Build the responses of /metadata, /label, and the v2 metadata endpoints from the contract.

The full list of library versions is in /inventory only.
"""

from typing import Any

from artifact.contract import Contract, Tensor, dimensions
from artifact.software import revision
from serving.errors import RequestError
from serving.inference.codecs.tensor_codec import DATATYPES

# The Open Inference Protocol's platform name for ONNX models.
_PLATFORM = "onnx_onnxv1"


def metadata(contract: Contract) -> dict[str, Any]:
    """Return the JSON fields of /metadata. The first six are from the book's API."""
    prediction = contract.prediction
    inputs, outputs = contract.sample()
    first = next(iter(contract.inputs), None)
    return {
        "data_type": first and first.dtype,
        "data_structure": first and _structure(first),
        "data_sample": first and inputs.get(first.name),
        "prediction_type": prediction.dtype,
        "prediction_structure": _structure(prediction),
        "prediction_sample": outputs[prediction.name],
        "name": contract.name,
        "version": contract.version,
        "purpose": contract.purpose,
        "owner": contract.owner,
        "sha256": contract.model.sha256,
        "inputs": [tensor.model_dump(mode="json") for tensor in contract.inputs],
        "outputs": [tensor.model_dump(mode="json") for tensor in contract.outputs],
        "batching": contract.batches,
        "metrics": contract.origin.metrics,
    }


def server_metadata() -> dict[str, Any]:
    """Return the server metadata of the Open Inference Protocol.

    The version is the git revision that the image was built from.
    """
    version = revision() or "unknown"
    return {"name": "inference", "version": version, "extensions": ["binary_tensor_data"]}


def model_metadata(contract: Contract) -> dict[str, Any]:
    """Return the model metadata of the Open Inference Protocol."""
    return {
        "name": contract.name,
        "versions": [contract.version],
        "platform": _PLATFORM,
        "inputs": [_metadata_tensor(tensor) for tensor in contract.inputs],
        "outputs": [_metadata_tensor(tensor) for tensor in contract.outputs],
    }


def labels(contract: Contract) -> dict[str, str]:
    """Return the labels by index. Raises RequestError 404 if the model has no labels."""
    if not contract.prediction.labels:
        raise no_labels(contract)
    return {str(index): label for index, label in enumerate(contract.prediction.labels)}


def no_labels(contract: Contract) -> RequestError:
    """Return the error of the label endpoints for a model without labels."""
    return RequestError(404, f'the model "{contract.name}" has no labels')


def _metadata_tensor(tensor: Tensor) -> dict[str, Any]:
    # The protocol writes a dynamic dimension as -1.
    shape = [size if isinstance(size, int) else -1 for size in tensor.shape]
    return {"name": tensor.name, "datatype": DATATYPES[tensor.dtype], "shape": shape}


def _structure(tensor: Tensor) -> str:
    return dimensions(tensor.shape).replace("[", "(").replace("]", ")")
