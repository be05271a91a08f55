"""What /metadata and /label say of the model: all of it from the contract.

The first six fields are the book's; the rest is what a client or a page needs to know.
What every library's version is is not for the predict port: that is in /inventory.
"""

from typing import Any

from artifact.contract import Contract, Tensor, dimensions
from artifact.software import revision
from serving.errors import RequestError
from serving.inference.codecs.tensor_codec import DATATYPES

# Of the names that the Open Inference Protocol has for frameworks.
_PLATFORM = "onnx_onnxv1"


def metadata(contract: Contract) -> dict[str, Any]:
    """Return the description of a model, without its golden rows and its environment."""
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
    """Return what the Open Inference Protocol says of a server; its version is its revision."""
    version = revision() or "unknown"
    return {"name": "inference", "version": version, "extensions": ["binary_tensor_data"]}


def model_metadata(contract: Contract) -> dict[str, Any]:
    """Return what the Open Inference Protocol says of a model."""
    return {
        "name": contract.name,
        "versions": [contract.version],
        "platform": _PLATFORM,
        "inputs": [_metadata_tensor(tensor) for tensor in contract.inputs],
        "outputs": [_metadata_tensor(tensor) for tensor in contract.outputs],
    }


def labels(contract: Contract) -> dict[str, str]:
    """Return label by index, as the book writes it. Raises RequestError 404 without labels."""
    if not contract.prediction.labels:
        raise no_labels(contract)
    return {str(index): label for index, label in enumerate(contract.prediction.labels)}


def no_labels(contract: Contract) -> RequestError:
    """Return the error for a model without labels, on every path that answers labels."""
    return RequestError(404, f'the model "{contract.name}" has no labels')


def _metadata_tensor(tensor: Tensor) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in tensor.shape]
    return {"name": tensor.name, "datatype": DATATYPES[tensor.dtype], "shape": shape}


def _structure(tensor: Tensor) -> str:
    return dimensions(tensor.shape).replace("[", "(").replace("]", ")")
