"""Codec of the Open Inference Protocol v2: tensors in, tensors out, as JSON or as binary data.

A request is decoded in two passes of compiled code: first the description of its tensors, then
the data of each tensor, with the type that the contract has for it (tensor_codec.py). Binary data
is used without a copy if it is aligned.

Sources: open-inference-protocol, specification/protocol/inference_rest.md; Triton's
docs/protocol/extension_binary_data.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec
import numpy as np
from msgspec import UNSET

from artifact.contract import Array, Contract
from serving.errors import RequestError
from serving.inference.codecs.json_types import parse_error
from serving.inference.codecs.tensor_codec import (
    DATATYPES,
    PARAMETERS_SCHEMA,
    Parameters,
    TensorCodec,
    TensorFields,
    to_binary,
)
from serving.inference.request import InferenceRequest

# Parameters of Triton's extensions. To ignore one would give a result that the client does not
# expect.
_UNSUPPORTED = ("classification", "shared_memory_region", "sequence_id")
# A tensor has at most as many values as the body has bytes. Only empty tensors, which have a
# dimension of 0, can have larger dimensions: they get this limit.
_MAX_EMPTY_VALUES = 1 << 16
# Limits of an error message.
_MAX_SHOWN_NAMES = 10
_MAX_NAME_CHARACTERS = 100
_MAX_VALUE_CHARACTERS = 40


class _Output(msgspec.Struct):
    name: str
    parameters: Parameters | None = None


class _Body(msgspec.Struct):
    inputs: list[TensorFields]
    id: str | None = None
    parameters: Parameters | None = None
    outputs: list[_Output] | None = None


@dataclass(slots=True, eq=False)
class OpenInferenceRequest(InferenceRequest):
    """An inference request with the fields that its response needs."""

    # The client's id, "" without one.
    id: str
    # Names of the outputs to return as binary data. The other outputs are JSON.
    binary: frozenset[str]


class OpenInferenceCodec:
    """Decodes requests and encodes responses of one contract. Immutable."""

    def __init__(self, contract: Contract, *, max_rows: int) -> None:
        self._contract = contract
        # Without batching the first dimension does not have to be rows, so there is no limit.
        self._max_rows = max_rows if contract.batches else None
        self._inputs = {tensor.name: TensorCodec(tensor) for tensor in contract.inputs}
        self._required = [tensor.name for tensor in contract.required_inputs]
        self._outputs = [tensor.name for tensor in contract.outputs]
        self._datatypes = {tensor.name: DATATYPES[tensor.dtype] for tensor in contract.outputs}
        self._body_decoder = msgspec.json.Decoder(_Body)
        self._encoder = msgspec.json.Encoder()

    def decode(self, body: bytes, json_bytes: int | None) -> OpenInferenceRequest:
        """Return the request in a body. Arrays have the contract's dtypes and shapes.

        json_bytes: the size of the JSON at the start of the body; binary data follows it. None if
        the whole body is JSON; 0 if the whole body is the data of the only input (a raw binary
        request). Raises RequestError: 413 if a model that supports batching gets more than
        max_rows rows, 400 if the body violates protocol or contract in another way.
        """
        if json_bytes == 0:
            return self._decode_raw(body)
        size = len(body) if json_bytes is None else json_bytes
        if size > len(body):
            raise RequestError(
                400, f"body: expected {size} bytes of JSON, as announced, got {len(body)}"
            )
        try:
            fields = self._body_decoder.decode(body[:size] if size < len(body) else body)
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            path, message = parse_error(error)
            raise RequestError(400, f"{path or 'body'}: {message}") from error
        inputs, end = self._decode_inputs(fields.inputs, body, size)
        if end != len(body):
            raise RequestError(
                400, f"body: expected {end - size} bytes of binary data, got {len(body) - size}"
            )
        outputs, binary = self._requested_outputs(fields)
        return OpenInferenceRequest(inputs, outputs, fields.id or "", binary)

    def encode(
        self, request: OpenInferenceRequest, outputs: list[Array]
    ) -> tuple[bytes, int | None]:
        """Return the response body, and the size of its JSON if binary data follows, else None.

        outputs: in the order of request.outputs. In JSON, NaN and infinities become null; binary
        data is exact.
        """
        described: list[dict[str, Any]] = []
        binary_data = []
        for name, output in zip(request.outputs, outputs, strict=True):
            array = np.asarray(output)
            fields: dict[str, Any] = {
                "name": name,
                "datatype": self._datatypes[name],
                "shape": array.shape,
            }
            if name in request.binary:
                binary_data.append(to_binary(array))
                fields["parameters"] = {"binary_data_size": len(binary_data[-1])}
            else:
                fields["data"] = array.ravel().tolist()
            described.append(fields)
        text = self._encoder.encode(
            {
                "model_name": self._contract.name,
                "model_version": self._contract.version,
                "id": request.id,
                "outputs": described,
            }
        )
        return (b"".join([text, *binary_data]), len(text)) if request.binary else (text, None)

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of a request body."""
        shape = {"type": "array", "items": {"type": "integer", "minimum": 0}}
        inputs = [codec.schema(shape) for codec in self._inputs.values()]
        output = {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"enum": self._outputs}, "parameters": PARAMETERS_SCHEMA},
        }
        return {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": {"type": ["string", "null"]},
                "parameters": PARAMETERS_SCHEMA,
                "inputs": {"type": "array", "items": {"anyOf": inputs}} if inputs else {},
                "outputs": {"type": ["array", "null"], "items": output},
            },
        }

    def _decode_inputs(
        self, tensors: list[TensorFields], body: bytes, start: int
    ) -> tuple[dict[str, Array], int]:
        """Return the arrays by name, and the offset in the body at which the binary data ends.

        start: the offset at which the binary data begins.
        """
        inputs: dict[str, Array] = {}
        # Sizes of named dimensions, which must be equal in all tensors.
        sizes: dict[str, int] = {}
        for index, tensor in enumerate(tensors):
            codec = self._inputs.get(tensor.name)
            if codec is None or tensor.name in inputs:
                self._reject_name(index, tensor.name)
            where = f'inputs[{index}] "{tensor.name}"'
            codec.check(where, tensor, sizes, max_values=max(len(body), _MAX_EMPTY_VALUES))
            if self._max_rows is not None and tensor.shape[0] > self._max_rows:
                raise RequestError(
                    413, f"{where}: expected at most {self._max_rows} rows, got {tensor.shape[0]}"
                )
            parameters = tensor.parameters or {}
            _reject_extensions(where, parameters)
            size = parameters.get("binary_data_size")
            if (size is None) is (tensor.data is UNSET):
                raise RequestError(
                    400, f'{where}: expected either "data" or binary_data_size, got '
                    f"{'neither' if size is None else 'both'}",
                )  # fmt: skip
            if size is None:
                inputs[tensor.name] = codec.from_json(where, tensor)
            else:
                inputs[tensor.name] = codec.from_binary(where, tensor.shape, body, start, size)
                start += int(size)
        if missing := [name for name in self._required if name not in inputs]:
            raise RequestError(
                400, f"inputs: expected {_quoted(self._required)}, got no {_quoted(missing)}"
            )
        return inputs, start

    def _reject_name(self, index: int, name: str) -> NoReturn:
        if name in self._inputs:
            raise RequestError(400, f'inputs[{index}] "{name}": expected once, got it again')
        raise RequestError(
            400, f"inputs[{index}].name: expected {_quoted(self._inputs) or 'none'}, got "
            f"{_quoted([name])}",
        )  # fmt: skip

    def _requested_outputs(self, fields: _Body) -> tuple[list[str], frozenset[str]]:
        """Return the names of the requested outputs in order, and those to return as binary."""
        parameters = fields.parameters or {}
        _reject_extensions("parameters", parameters)
        default = _flag("parameters", parameters, "binary_data_output", default=False)
        if not fields.outputs:
            return self._outputs, frozenset(self._outputs if default else ())
        names: list[str] = []
        binary = set()
        for index, output in enumerate(fields.outputs):
            where = f'outputs[{index}] "{output.name[:_MAX_NAME_CHARACTERS]}"'
            if output.name not in self._datatypes:
                raise RequestError(400, f"{where}: expected {_quoted(self._outputs)}")
            if output.name in names:
                raise RequestError(400, f"{where}: expected once, got it again")
            parameters = output.parameters or {}
            _reject_extensions(where, parameters)
            names.append(output.name)
            if _flag(where, parameters, "binary_data", default=default):
                binary.add(output.name)
        return names, frozenset(binary)

    def _decode_raw(self, body: bytes) -> OpenInferenceRequest:
        """Return the request of a body that consists of the binary data of the only input.

        The data is a single row if the model supports batching. All outputs are returned as binary
        data.
        """
        if len(self._inputs) != 1:
            raise RequestError(
                400, "Inference-Header-Content-Length: expected more than 0, got 0: only a model "
                f"with one input takes a body without JSON, this one has {len(self._inputs)}",
            )  # fmt: skip
        ((name, codec),) = self._inputs.items()
        array = codec.from_raw(f'"{name}"', body, single_row=self._contract.batches)
        return OpenInferenceRequest({name: array}, self._outputs, "", frozenset(self._outputs))


def _reject_extensions(where: str, parameters: Parameters) -> None:
    for name in _UNSUPPORTED:
        if parameters.get(name):
            raise RequestError(400, f"{where}: {name} is not supported by this server")


def _flag(where: str, parameters: Parameters, name: str, *, default: bool) -> bool:
    flag = parameters.get(name)
    if flag is None:
        return default
    if not isinstance(flag, bool):
        actual = repr(flag)[:_MAX_VALUE_CHARACTERS]
        raise RequestError(400, f"{where}: expected {name} true or false, got {actual}")
    return flag


def _quoted(names: Iterable[str]) -> str:
    """Return names for an error message: the first ten, and the number of the others."""
    shown = [f'"{name[:_MAX_NAME_CHARACTERS]}"' for name in names]
    more = f" and {len(shown) - _MAX_SHOWN_NAMES} more" if len(shown) > _MAX_SHOWN_NAMES else ""
    return ", ".join(shown[:_MAX_SHOWN_NAMES]) + more
