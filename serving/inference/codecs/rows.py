"""Codec of /predict and /predict/label: JSON rows to arrays, and outputs to JSON rows.

A request is `{"data": [[…], …]}`, a response `{"prediction": […]}`. A valid body is decoded and
checked in one pass of compiled code: all rules of the contract are part of the type that msgspec
decodes. Only an invalid body is parsed a second time, in Python, to explain the error.
"""

import json
import math
from typing import Annotated, Any, NoReturn

import msgspec
import numpy as np
from msgspec import Meta

from artifact.contract import Array, Contract, Tensor, dimensions, numpy_dtype
from serving.errors import RequestError
from serving.inference.codecs.json_types import parse_error, value_type

# Limits of an error message.
_MAX_SHOWN_CHARACTERS = 40
_MAX_SHOWN_FEATURES = 10
_MAX_SHOWN_FIELDS = 5
# Larger invalid bodies are explained by msgspec's message alone: parsing them a second time
# would block the event loop for other requests.
_MAX_EXPLAINED_BYTES = 1 << 18


def rows_unsupported_reason(contract: Contract) -> str | None:
    """Return why a model does not support /predict; None if it does.

    It needs exactly one required input, numeric tensors, and an output row for each input row.
    """
    inputs = contract.required_inputs
    if len(inputs) == 1 and inputs[0].dtype != "string" and contract.prediction.dtype != "string":
        rows, predictions = inputs[0].shape[:1], contract.prediction.shape[:1]
        if rows and predictions and (rows == predictions or _has_row_per_row(contract)):
            return None
    takes, gives = (
        ", ".join(f'"{tensor.name}" {tensor.signature}' for tensor in tensors)
        for tensors in (inputs, [contract.prediction])
    )
    return (
        "this path is for models with one numeric input that give a row for each row; "
        f"this model takes {takes or 'nothing'} and gives {gives}: "
        f"POST /v2/models/{contract.name}/infer"
    )


def _has_row_per_row(contract: Contract) -> bool:
    """Tell whether two dynamic first dimensions with different names have the same size.

    An unnamed dimension is assumed to match. Different names are compared by the golden rows;
    a single golden row proves nothing, because most outputs of one row have size 1.
    """
    (tensor,), prediction = contract.required_inputs, contract.prediction
    if isinstance(tensor.shape[0], int) or isinstance(prediction.shape[0], int):
        return False
    if None in {tensor.shape[0], prediction.shape[0]}:
        return True
    rows = contract.golden.inputs.get(tensor.name, ())
    return len(rows) == len(contract.golden.outputs.get(prediction.name, ())) > 1


class RowsCodec:
    """Decodes requests and encodes responses of one contract. Immutable.

    Only for contracts without a rows_unsupported_reason().
    """

    def __init__(self, contract: Contract, *, max_rows: int) -> None:
        (self._tensor,) = contract.required_inputs
        self._dtype = numpy_dtype(self._tensor.dtype)
        self._max_rows = max_rows
        self._data_type = _list_type(self._tensor, self._tensor.shape, max_length=max_rows)
        body: Any = msgspec.defstruct(
            "PredictRequest", [("data", self._data_type)], forbid_unknown_fields=True
        )
        self._decoder = msgspec.json.Decoder(body)
        self._encoder = msgspec.json.Encoder()
        self._prediction = contract.outputs.index(contract.prediction)
        self._labels = np.array(contract.prediction.labels, dtype=object)
        # Whether /predict/label is supported: a classifier with a score for each label.
        self.has_labels = len(self._labels) > 0 and len(contract.prediction.shape) > 1
        self._equal_axes = _equal_axes(self._tensor)

    def decode(self, body: bytes) -> dict[str, Array]:
        """Return the model's input by its name.

        body: `{"data": [[5.1, 3.5, 1.4, 0.2], …]}`, UTF-8. The array has the contract's dtype and
        shape: (n, features) for most models, n >= 1, units as in the contract. Raises
        RequestError: 413 if n > max_rows, 400 if the body violates the contract in another way.
        """
        try:
            data = self._decoder.decode(body).data
            # Raises ValueError for ragged rows, which msgspec accepts in dynamic dimensions.
            array = np.array(data, dtype=self._dtype)
        except (ValueError, OverflowError) as error:  # msgspec's errors are ValueErrors
            self._explain(body, error)
        for first, second in self._equal_axes:
            if array.shape[first] != array.shape[second]:
                actual = dimensions(list(array.shape))
                raise RequestError(400, f"data: expected {self._tensor.signature}, got {actual}")
        return {self._tensor.name: array}

    def encode(self, outputs: list[Array]) -> bytes:
        """Return the body of /predict: `{"prediction": [[…], …]}`, a row for each input row.

        outputs: all outputs in the contract's order, the prediction with shape (n,) or (n, …).
        NaN and infinities become null.
        """
        prediction = outputs[self._prediction]
        if prediction.ndim == 1:
            prediction = prediction[:, None]
        return self._encoder.encode({"prediction": prediction.tolist()})

    def encode_labels(self, outputs: list[Array]) -> bytes:
        """Return the body of /predict/label: `{"prediction": ["setosa", …]}`, a label for each row.

        outputs: all outputs in the contract's order, the prediction with shape (n, labels). The
        label is the one with the largest score; null if a score of the row is NaN.
        """
        prediction = outputs[self._prediction]
        labels = self._labels[prediction.argmax(axis=-1)]
        if prediction.dtype.kind == "f":
            # argmax treats NaN as the largest value.
            labels[np.isnan(prediction).any(axis=-1)] = None
        return self._encoder.encode({"prediction": labels.tolist()})

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of a request body."""
        return {
            "type": "object",
            "required": ["data"],
            "additionalProperties": False,
            "properties": {"data": msgspec.json.schema(self._data_type)},
        }

    def _explain(self, body: bytes, error: Exception) -> NoReturn:
        """Raise the RequestError that explains best why the body is invalid."""
        if len(body) > _MAX_EXPLAINED_BYTES:
            _raise_decoder_error(error)
        try:
            request = json.loads(body)
        except json.JSONDecodeError as invalid:
            actual = f"{invalid.msg} at byte {invalid.pos}" if body else "an empty body"
            raise RequestError(400, f'body: expected JSON {{"data": …}}, got {actual}') from error
        except (ValueError, RecursionError):  # not UTF-8, too many digits, too deeply nested
            raise RequestError(400, f"body: {error}") from error
        self._check_request(request)
        # Valid to the checks in Python, which happens only if they differ from the decoder.
        raise RequestError(400, f"body: {error}") from error

    def _check_request(self, request: Any) -> None:
        if not isinstance(request, dict):
            raise RequestError(400, f'body: expected {{"data": …}}, got {_shown(request)}')
        unknown = [field for field in request if field != "data"]
        problems = [f"unknown field {_shown(field)}" for field in unknown[:_MAX_SHOWN_FIELDS]]
        if len(unknown) > _MAX_SHOWN_FIELDS:
            problems.append(f"{len(unknown) - _MAX_SHOWN_FIELDS} more")
        if "data" not in request:
            problems.insert(0, 'missing field "data"')
        if problems:
            raise RequestError(400, f'body: expected {{"data": …}}, got {"; ".join(problems)}')
        data = request["data"]
        if isinstance(data, list) and len(data) > self._max_rows:
            raise RequestError(
                413, f"data: expected at most {self._max_rows} rows, got {len(data)}"
            )
        self._check_list(data, self._tensor.shape, "data")
        _check_ragged(data, "data")

    def _check_list(self, value: Any, shape: tuple[int | str | None, ...], path: str) -> None:
        """Raise for the first value that does not match. shape: the dimensions from here on."""
        if not shape:
            _check_number(value, self._tensor, path)
            return
        size, inner = shape[0], shape[1:]
        if not isinstance(value, list):
            raise RequestError(
                400, f"{path}: expected {self._expected_list(shape)}, got {_shown(value)}"
            )
        if not value or (isinstance(size, int) and len(value) != size):
            raise RequestError(
                400, f"{path}: expected {self._expected_list(shape)}, got {len(value)}"
            )
        for index, item in enumerate(value):
            self._check_list(item, inner, f"{path}[{index}]")

    def _expected_list(self, shape: tuple[int | str | None, ...]) -> str:
        """Describe the expected list, such as `a list of 4 numbers (sepal length, …)`."""
        if len(shape) == len(self._tensor.shape):
            return f"a list of {_count(shape[0], 'row')}"
        if len(shape) > 1:
            return f"a list of {_count(shape[0], 'list')}"
        features = self._tensor.features
        show_names = 0 < len(features) <= _MAX_SHOWN_FEATURES
        names = f" ({', '.join(feature.name for feature in features)})" if show_names else ""
        return f"a list of {_count(shape[0], 'number')}{names}"


def _list_type(
    tensor: Tensor, shape: tuple[int | str | None, ...], *, max_length: int | None
) -> Any:
    """Return the msgspec type of nested lists with the tensor's sizes and value type."""
    if not shape:
        return value_type(tensor.dtype)
    size = shape[0]
    if isinstance(size, int):
        limits = Meta(min_length=size, max_length=size)
    else:
        limits = Meta(min_length=1, max_length=max_length)
    return Annotated[list[_list_type(tensor, shape[1:], max_length=None)], limits]  # type: ignore[misc]


def _equal_axes(tensor: Tensor) -> list[tuple[int, int]]:
    """Return the pairs of axes whose dimensions have the same name, so must have the same size."""
    first = {name: axis for axis, name in reversed(list(enumerate(tensor.shape)))}
    named = [(axis, name) for axis, name in enumerate(tensor.shape) if isinstance(name, str)]
    return [(first[name], axis) for axis, name in named if first[name] != axis]


def _raise_decoder_error(error: Exception) -> NoReturn:
    """Raise msgspec's message as a RequestError."""
    path, message = parse_error(error)
    status = 413 if path == "data" and "length <=" in message else 400
    raise RequestError(status, f"{path or 'body'}: {message}") from error


def _check_number(value: Any, tensor: Tensor, path: str) -> None:
    dtype = numpy_dtype(tensor.dtype)
    if dtype.kind == "b":
        valid, expected = isinstance(value, bool), "true or false"
    elif isinstance(value, bool) or not isinstance(value, int | float):
        valid, expected = False, "a number"
    elif dtype.kind == "f":
        limit = float(np.finfo(dtype).max)
        valid = math.isfinite(value) if isinstance(value, float) else True
        expected = "a finite number"
        if valid and not -limit <= value <= limit:
            valid, expected = False, f"a number that fits {tensor.dtype}"
    else:
        info = np.iinfo(dtype)
        valid = isinstance(value, int) and info.min <= value <= info.max
        expected = f"a whole number that fits {tensor.dtype}"
    if not valid:
        raise RequestError(400, f"{path}: expected {expected}, got {_shown(value)}")


def _check_ragged(value: Any, path: str) -> None:
    """Raise for sibling lists of different lengths, depth first."""
    lists = [item for item in value if isinstance(item, list)]
    for index, item in enumerate(lists):
        if len(item) != len(lists[0]):
            raise RequestError(
                400,
                f"{path}[{index}]: expected as many values as in {path}[0], {len(lists[0])}, "
                f"got {len(item)}",
            )
        _check_ragged(item, f"{path}[{index}]")


def _count(size: int | str | None, noun: str) -> str:
    """Return `1 row`, `4 rows`, or `one row or more` for a dynamic dimension."""
    if not isinstance(size, int):
        return f"one {noun} or more"
    return f"{size} {noun}" if size == 1 else f"{size} {noun}s"


def _shown(value: Any) -> str:
    """Return a client's value as short JSON; of a list its length, of an object no content."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    try:
        text = json.dumps(value, ensure_ascii=False)
    except ValueError:  # Python limits the digits of an integer that it prints
        return "a number of too many digits"
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else text[:_MAX_SHOWN_CHARACTERS] + "…"
