"""Tensors in, tensors out: requests and answers of the Open Inference Protocol v2.

Used by infer.py on the hot path. A request is decoded in two passes of compiled code: what it
says of its tensors, and then each tensor's data, in tensor.py, by the type that the contract
has for it. The binary tensor data extension is read without a copy where that can be.

Sources: open-inference-protocol, specification/protocol/inference_rest.md; Triton's
docs/protocol/extension_binary_data.md.
"""

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
    PARAMETERS,
    InputFields,
    Parameters,
    TensorCodec,
    to_binary,
)
from serving.inference.request import InferenceRequest

# Parameters of Triton's extensions that would change what is inferred, or where it goes.
_NOT_SERVED = ("classification", "shared_memory_region", "sequence_id")
# More than a body has bytes can be in the shape of an empty tensor only.
_EMPTY_VALUES = 1 << 16
_SHOWN_NAMES = 10


class _Output(msgspec.Struct):
    name: str
    parameters: Parameters | None = None


class _Body(msgspec.Struct):
    inputs: list[InputFields]
    id: str | None = None
    parameters: Parameters | None = None
    outputs: list[_Output] | None = None


@dataclass(slots=True, eq=False)
class OpenInferenceRequest(InferenceRequest):
    """What a client asks for. id: its own, or "". binary: which outputs as binary data."""

    id: str
    binary: frozenset[str]


class OpenInferenceCodec:
    """The codec of one contract; made once a model, never changed."""

    def __init__(self, contract: Contract, *, max_rows: int) -> None:
        self._contract = contract
        self._max_rows = max_rows if contract.batches else None
        self._inputs = {tensor.name: TensorCodec(tensor) for tensor in contract.inputs}
        self._required = [tensor.name for tensor in contract.required_inputs]
        self._outputs = [tensor.name for tensor in contract.outputs]
        self._datatypes = {tensor.name: DATATYPES[tensor.dtype] for tensor in contract.outputs}
        self._body = msgspec.json.Decoder(_Body)
        self._encoder = msgspec.json.Encoder()

    def decode(self, body: bytes, json_bytes: int | None) -> OpenInferenceRequest:
        """Return the request that a body holds.

        json_bytes: how many of the body are JSON, the rest being binary data; None where all
        are, 0 where the body is the data of the one input (a raw binary request). Raises
        RequestError: 413 for more than max_rows rows of a model that requests may share runs
        of, 400 for anything else that the contract does not allow.
        """
        if json_bytes == 0:
            return self._decode_raw(body)
        size = len(body) if json_bytes is None else json_bytes
        if size > len(body):
            raise RequestError(
                400, f"body: expected {size} bytes of JSON, as announced, got {len(body)}"
            )
        try:
            asked = self._body.decode(body[:size] if size < len(body) else body)
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            _refuse(error)
        inputs, end = self._decode_inputs(asked.inputs, body, size)
        if end != len(body):
            raise RequestError(
                400, f"body: expected {end - size} bytes of binary data, got {len(body) - size}"
            )
        outputs, binary = self._asked_outputs(asked)
        return OpenInferenceRequest(inputs, outputs, asked.id or "", binary)

    def encode(
        self, request: OpenInferenceRequest, outputs: list[Array]
    ) -> tuple[bytes, int | None]:
        """Return the answer, and how many bytes of it are JSON if not all of them.

        outputs: in the order of request.outputs. In JSON what is no number is null.
        """
        described: list[dict[str, Any]] = []
        pieces = []
        for name, output in zip(request.outputs, outputs, strict=True):
            array = np.asarray(output)
            about: dict[str, Any] = {
                "name": name,
                "datatype": self._datatypes[name],
                "shape": array.shape,
            }
            if name in request.binary:
                pieces.append(to_binary(array))
                about["parameters"] = {"binary_data_size": len(pieces[-1])}
            else:
                about["data"] = array.ravel().tolist()
            described.append(about)
        head = self._encoder.encode(
            {
                "model_name": self._contract.name,
                "model_version": self._contract.version,
                "id": request.id,
                "outputs": described,
            }
        )
        return (b"".join([head, *pieces]), len(head)) if request.binary else (head, None)

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of a request body."""
        shape = {"type": "array", "items": {"type": "integer", "minimum": 0}}
        inputs = [codec.schema(shape) for codec in self._inputs.values()]
        output = {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"enum": self._outputs}, "parameters": PARAMETERS},
        }
        return {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": {"type": ["string", "null"]},
                "parameters": PARAMETERS,
                "inputs": {"type": "array", "items": {"anyOf": inputs}} if inputs else {},
                "outputs": {"type": ["array", "null"], "items": output},
            },
        }

    def _decode_inputs(
        self, given: list[InputFields], body: bytes, start: int
    ) -> tuple[dict[str, Array], int]:
        """Return the arrays by name, and where in the body their binary data ends."""
        inputs: dict[str, Array] = {}
        # Dimensions of one name are of one size.
        sizes: dict[str, int] = {}
        for index, one in enumerate(given):
            codec = self._inputs.get(one.name)
            if codec is None or one.name in inputs:
                self._refuse_name(index, one.name)
            where = f'inputs[{index}] "{one.name}"'
            codec.check(where, one, sizes, most_values=max(len(body), _EMPTY_VALUES))
            if self._max_rows is not None and one.shape[0] > self._max_rows:
                raise RequestError(
                    413, f"{where}: expected at most {self._max_rows} rows, got {one.shape[0]}"
                )
            parameters = one.parameters or {}
            _refuse_extensions(where, parameters)
            size = parameters.get("binary_data_size")
            if (size is None) is (one.data is UNSET):
                raise RequestError(
                    400, f'{where}: expected either "data" or binary_data_size, got '
                    f"{'neither' if size is None else 'both'}",
                )  # fmt: skip
            if size is None:
                inputs[one.name] = codec.from_json(where, one)
            else:
                inputs[one.name] = codec.from_binary(where, one.shape, body, start, size)
                start += int(size)
        if missing := [name for name in self._required if name not in inputs]:
            raise RequestError(
                400, f"inputs: expected {_quoted(self._required)}, got no {_quoted(missing)}"
            )
        return inputs, start

    def _refuse_name(self, index: int, name: str) -> NoReturn:
        if name in self._inputs:
            raise RequestError(400, f'inputs[{index}] "{name}": expected once, got it again')
        raise RequestError(
            400, f"inputs[{index}].name: expected {_quoted(self._inputs) or 'none'}, got "
            f"{_quoted([name])}",
        )  # fmt: skip

    def _asked_outputs(self, asked: _Body) -> tuple[list[str], frozenset[str]]:
        """Return the outputs that are asked for, in order, and those that are to be binary."""
        parameters = asked.parameters or {}
        _refuse_extensions("parameters", parameters)
        default = _flag("parameters", parameters, "binary_data_output", default=False)
        if not asked.outputs:
            return self._outputs, frozenset(self._outputs if default else ())
        names: list[str] = []
        binary = set()
        for index, output in enumerate(asked.outputs):
            where = f'outputs[{index}] "{output.name[: _SHOWN_NAMES * 10]}"'
            if output.name not in self._datatypes:
                raise RequestError(400, f"{where}: expected {_quoted(self._outputs)}")
            if output.name in names:
                raise RequestError(400, f"{where}: expected once, got it again")
            parameters = output.parameters or {}
            _refuse_extensions(where, parameters)
            names.append(output.name)
            if _flag(where, parameters, "binary_data", default=default):
                binary.add(output.name)
        return names, frozenset(binary)

    def _decode_raw(self, body: bytes) -> OpenInferenceRequest:
        """Return the request whose body is the binary data of the one input, of one row."""
        if len(self._inputs) != 1:
            raise RequestError(
                400, "Inference-Header-Content-Length: expected more than 0, got 0: only a model "
                f"with one input takes a body without JSON, this one has {len(self._inputs)}",
            )  # fmt: skip
        ((name, codec),) = self._inputs.items()
        array = codec.from_raw(f'"{name}"', body, one_row=self._contract.batches)
        return OpenInferenceRequest({name: array}, self._outputs, "", frozenset(self._outputs))


def _refuse(error: Exception) -> NoReturn:
    where, what = parse_error(error)
    raise RequestError(400, f"{where or 'body'}: {what}") from error


def _refuse_extensions(where: str, parameters: Parameters) -> None:
    for name in _NOT_SERVED:
        if parameters.get(name):
            raise RequestError(400, f"{where}: {name} is not served here")


def _flag(where: str, parameters: Parameters, name: str, *, default: bool) -> bool:
    flag = parameters.get(name)
    if flag is None:
        return default
    if not isinstance(flag, bool):
        raise RequestError(400, f"{where}: expected {name} true or false, got {repr(flag)[:40]}")
    return flag


def _quoted(names: Any) -> str:
    """Return some names for a person; of many the first."""
    shown = [f'"{str(name)[:100]}"' for name in names]
    more = f" and {len(shown) - _SHOWN_NAMES} more" if len(shown) > _SHOWN_NAMES else ""
    return ", ".join(shown[:_SHOWN_NAMES]) + more
