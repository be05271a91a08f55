"""What /metadata and /label say of the model: all of it from the contract.

The first six fields are the book's; the rest is what a client or a page needs to know.
What every library's version is is not for the predict port: that is in /inventory.
"""

from typing import Any

from serving.contract import Contract, Tensor, dimensions
from serving.errors import RequestError


def metadata(contract: Contract) -> dict[str, Any]:
    """Return the description of a model, without its golden rows and its environment."""
    first, prediction = contract.inputs[0], contract.prediction
    inputs, outputs = contract.sample()
    return {
        "data_type": first.dtype,
        "data_structure": _structure(first),
        "data_sample": inputs[first.name],
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
        "metrics": contract.origin.metrics,
    }


def labels(contract: Contract) -> dict[str, str]:
    """Return label by index, as the book writes it. Raises RequestError 404 without labels."""
    if not contract.prediction.labels:
        raise no_labels(contract)
    return {str(index): label for index, label in enumerate(contract.prediction.labels)}


def no_labels(contract: Contract) -> RequestError:
    """Return the error for a model without labels, on every path that answers labels."""
    return RequestError(404, f'the model "{contract.name}" has no labels')


def _structure(tensor: Tensor) -> str:
    return dimensions(tensor.shape).replace("[", "(").replace("]", ")")
