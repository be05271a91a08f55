"""Rows of JSON in, rows of JSON out: the book's `{"data": [[…], …]}` and `{"prediction": …}`.

Used by predict.py on the hot path, so a good body is decoded and checked in one pass of
compiled code, with every rule of the contract inside the decoder's type. Only a bad body
is read a second time, slowly, to say what is wrong with it.
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

_SHOWN_CHARACTERS = 40
_SHOWN_FEATURES = 10
_SHOWN_FIELDS = 5
_EXPLAINED_BYTES = 1 << 18


def rows_unsupported_reason(contract: Contract) -> str | None:
    """Return why a model's requests cannot be written as rows of numbers, None if they can."""
    inputs = contract.required_inputs
    if len(inputs) == 1 and inputs[0].dtype != "string" and contract.prediction.dtype != "string":
        rows, predictions = inputs[0].shape[:1], contract.prediction.shape[:1]
        if rows and predictions and (rows == predictions or _as_many(contract)):
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


def _as_many(contract: Contract) -> bool:
    """Tell whether two dynamic dimensions of different names are of one size, as golden rows say.

    One row would say nothing.
    """
    (given,), made = contract.required_inputs, contract.prediction
    if isinstance(given.shape[0], int) or isinstance(made.shape[0], int):
        return False
    if None in {given.shape[0], made.shape[0]}:
        return True
    rows = contract.golden.inputs.get(given.name, ())
    return len(rows) == len(contract.golden.outputs.get(made.name, ())) > 1


class RowsCodec:
    """The codec of one contract; made once a model, never changed.

    Only for contracts that rows_unsupported_reason() has nothing against.
    """

    def __init__(self, contract: Contract, *, max_rows: int) -> None:
        (self._tensor,) = contract.required_inputs
        self._dtype = numpy_dtype(self._tensor.dtype)
        self._max_rows = max_rows
        self._data_type = _list_type(self._tensor, self._tensor.shape, at_most=max_rows)
        body: Any = msgspec.defstruct(
            "PredictRequest", [("data", self._data_type)], forbid_unknown_fields=True
        )
        self._decoder = msgspec.json.Decoder(body)
        self._encoder = msgspec.json.Encoder()
        self._prediction = contract.outputs.index(contract.prediction)
        self._labels = np.array(contract.prediction.labels, dtype=object)
        # Whether each row has a label: a classifier whose rows are more than one number.
        self.has_labels = len(self._labels) > 0 and len(contract.prediction.shape) > 1
        self._same_sizes = _same_sizes(self._tensor)

    def decode(self, body: bytes) -> dict[str, Array]:
        """Return the model's input of a request body, by its name.

        The array has the contract's dtype and one row for each row of `data`, n >= 1.
        Raises RequestError: 413 for more than max_rows rows, 400 for anything else that
        the contract does not allow.
        """
        try:
            data = self._decoder.decode(body).data
            # Ragged rows get this far only where the contract leaves a size open.
            array = np.array(data, dtype=self._dtype)
        except (ValueError, OverflowError) as error:  # msgspec's errors are ValueErrors
            self._explain(body, error)
        for one, other in self._same_sizes:
            if array.shape[one] != array.shape[other]:
                came = dimensions(list(array.shape))
                raise RequestError(400, f"data: expected {self._tensor.signature}, got {came}")
        return {self._tensor.name: array}

    def encode(self, outputs: list[Array]) -> bytes:
        """Return the answer of /predict: a row for each row, NaN and infinities as null."""
        prediction = outputs[self._prediction]
        if prediction.ndim == 1:
            prediction = prediction[:, None]
        return self._encoder.encode({"prediction": prediction.tolist()})

    def encode_labels(self, outputs: list[Array]) -> bytes:
        """Return the answer of /predict/label: the label of the largest value of each row.

        Null where a row holds NaN: there is no largest value then.
        """
        prediction = outputs[self._prediction]
        labels = self._labels[prediction.argmax(axis=-1)]
        if prediction.dtype.kind == "f":
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
        """Raise the RequestError that says best why a body was refused."""
        if len(body) > _EXPLAINED_BYTES:
            self._repeat(error)
        try:
            request = json.loads(body)
        except json.JSONDecodeError as found:
            came = f"{found.msg} at byte {found.pos}" if body else "an empty body"
            raise RequestError(400, f'body: expected JSON {{"data": …}}, got {came}') from error
        except (ValueError, RecursionError):  # not UTF-8, endless digits, endless nesting
            raise RequestError(400, f"body: {error}") from error
        self._explain_request(request)
        raise RequestError(400, f"body: {error}") from error

    def _repeat(self, error: Exception) -> NoReturn:
        """Raise what msgspec said: reading a large body again would hold others up."""
        where, what = parse_error(error)
        status = 413 if where == "data" and "length <=" in what else 400
        raise RequestError(status, f"{where or 'body'}: {what}") from error

    def _explain_request(self, request: Any) -> None:
        if not isinstance(request, dict):
            raise RequestError(400, f'body: expected {{"data": …}}, got {_shown(request)}')
        unknown = [field for field in request if field != "data"]
        wrong = [f"unknown field {_shown(field)}" for field in unknown[:_SHOWN_FIELDS]]
        if len(unknown) > _SHOWN_FIELDS:
            wrong.append(f"{len(unknown) - _SHOWN_FIELDS} more")
        if "data" not in request:
            wrong.insert(0, 'missing field "data"')
        if wrong:
            raise RequestError(400, f'body: expected {{"data": …}}, got {"; ".join(wrong)}')
        data = request["data"]
        if isinstance(data, list) and len(data) > self._max_rows:
            raise RequestError(
                413, f"data: expected at most {self._max_rows} rows, got {len(data)}"
            )
        self._explain_list(data, self._tensor.shape, "data")
        _explain_ragged(data, "data")

    def _explain_list(self, value: Any, shape: tuple[int | str | None, ...], path: str) -> None:
        if not shape:
            _explain_number(value, self._tensor, path)
            return
        size, inner = shape[0], shape[1:]
        if not isinstance(value, list):
            raise RequestError(
                400, f"{path}: expected {self._described(shape)}, got {_shown(value)}"
            )
        if not value or (isinstance(size, int) and len(value) != size):
            raise RequestError(400, f"{path}: expected {self._described(shape)}, got {len(value)}")
        for index, item in enumerate(value):
            self._explain_list(item, inner, f"{path}[{index}]")

    def _described(self, shape: tuple[int | str | None, ...]) -> str:
        """Return what is expected at a depth of the input, in a client's words."""
        size = shape[0]
        if len(shape) == len(self._tensor.shape):
            return (
                f"a list of {_counted(size, 'row') if isinstance(size, int) else 'one row or more'}"
            )
        what = "number" if len(shape) == 1 else "list"
        counted = _counted(size, what) if isinstance(size, int) else f"one {what} or more"
        features = self._tensor.features
        named = len(shape) == 1 and 0 < len(features) <= _SHOWN_FEATURES
        names = f" ({', '.join(feature.name for feature in features)})" if named else ""
        return f"a list of {counted}{names}"


def _list_type(tensor: Tensor, shape: tuple[int | str | None, ...], *, at_most: int | None) -> Any:
    """Return the type msgspec checks: nested lists of the tensor's sizes and numbers."""
    if not shape:
        return value_type(tensor.dtype)
    size = shape[0]
    if isinstance(size, int):
        limits = Meta(min_length=size, max_length=size)
    else:
        limits = Meta(min_length=1, max_length=at_most)
    return Annotated[list[_list_type(tensor, shape[1:], at_most=None)], limits]  # type: ignore[misc]


def _same_sizes(tensor: Tensor) -> list[tuple[int, int]]:
    """Return the pairs of dimensions that have one name, and so must have one size."""
    first = {name: axis for axis, name in reversed(list(enumerate(tensor.shape)))}
    named = [(axis, name) for axis, name in enumerate(tensor.shape) if isinstance(name, str)]
    return [(first[name], axis) for axis, name in named if first[name] != axis]


def _explain_number(value: Any, tensor: Tensor, path: str) -> None:
    dtype = numpy_dtype(tensor.dtype)
    if dtype.kind == "b":
        right, expected = isinstance(value, bool), "true or false"
    elif isinstance(value, bool) or not isinstance(value, int | float):
        right, expected = False, "a number"
    elif dtype.kind == "f":
        limit = float(np.finfo(dtype).max)
        right = math.isfinite(value) if isinstance(value, float) else True
        expected = "a finite number"
        if right and not -limit <= value <= limit:
            right, expected = False, f"a number that fits {tensor.dtype}"
    else:
        info = np.iinfo(dtype)
        right = isinstance(value, int) and info.min <= value <= info.max
        expected = f"a whole number that fits {tensor.dtype}"
    if not right:
        raise RequestError(400, f"{path}: expected {expected}, got {_shown(value)}")


def _explain_ragged(value: Any, path: str) -> None:
    """Raise for sibling lists of different lengths; depth first."""
    lists = [item for item in value if isinstance(item, list)]
    for index, item in enumerate(lists):
        if len(item) != len(lists[0]):
            raise RequestError(
                400,
                f"{path}[{index}]: expected as many values as in {path}[0], {len(lists[0])}, "
                f"got {len(item)}",
            )
        _explain_ragged(item, f"{path}[{index}]")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _shown(value: Any) -> str:
    """Return what came, as JSON, shortened; a list or an object by its kind."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    try:
        text = json.dumps(value, ensure_ascii=False)
    except ValueError:  # an integer of more digits than Python prints
        return "a number of too many digits"
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
