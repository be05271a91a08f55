"""One tensor on the wire: as JSON data, nested or flat, and as binary data.

Used by tensors.py for each tensor of a request and of an answer. Source of the binary form:
Triton's docs/protocol/extension_binary_data.md.
"""

import math
import re
import struct
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from artifact.contract import Array, Dtype, Tensor, dimensions, numpy_dtype
from serving.errors import RequestError
from serving.inference.codecs.json_types import parse_error, value_type

# What the Open Inference Protocol calls the dtypes of a contract.
DATATYPES: dict[Dtype, str] = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "string": "BYTES",
}
_NESTED = re.compile(rb"\s*\[\s*\[")
_SHOWN_DIMENSIONS, _SHOWN_SIZE = 16, 1 << 62
_LENGTH = struct.Struct("<I")

# JSON Schema of the type below.
PARAMETERS = {
    "type": ["object", "null"],
    "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
}
Parameters = dict[str, str | int | float | bool | None]


class InputFields(msgspec.Struct):
    """What a request says of an input."""

    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters | None = None
    data: msgspec.Raw | UnsetType = UNSET


class TensorCodec:
    """One input of a contract; made once a model, never changed."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._datatype = DATATYPES[tensor.dtype]
        self._dtype = numpy_dtype(tensor.dtype)
        self._shape = tensor.shape
        self._named = [
            (axis, name) for axis, name in enumerate(tensor.shape) if isinstance(name, str)
        ]
        flat: Any = list[value_type(tensor.dtype)]  # type: ignore[misc]
        nested = flat
        for _ in tensor.shape[1:]:
            nested = list[nested]  # type: ignore[valid-type]
        self._flat = msgspec.json.Decoder(flat)
        self._nested = msgspec.json.Decoder(nested)

    def check(
        self, where: str, given: InputFields, sizes: dict[str, int], *, most_values: int
    ) -> None:
        """Refuse another datatype or shape than the contract's.

        sizes: of named dimensions. most_values: that there can be, were a size of 0 one of 1.
        """
        if given.datatype != self._datatype:
            raise RequestError(
                400, f"{where}: expected datatype {self._datatype}, got {given.datatype[:40]}"
            )
        fits = len(given.shape) == len(self._shape) and min(given.shape, default=0) >= 0
        if not fits or any(
            size != promised
            for size, promised in zip(given.shape, self._shape, strict=True)
            if isinstance(promised, int)
        ):
            raise RequestError(
                400,
                f"{where}: expected shape {dimensions(self._shape)}, got {_shown(given.shape)}",
            )
        if math.prod(size or 1 for size in given.shape) > most_values:
            raise RequestError(
                400, f"{where}: expected at most {most_values} values, got {_shown(given.shape)}"
            )
        for axis, name in self._named:
            if sizes.setdefault(name, given.shape[axis]) != given.shape[axis]:
                raise RequestError(
                    400, f"{where}: expected shape {dimensions(self._shape)} with "
                    f"{name} = {sizes[name]}, got {_shown(given.shape)}",
                )  # fmt: skip

    def from_json(self, where: str, given: InputFields) -> Array:
        """Return the array of JSON data, nested as its shape or flat."""
        data: Any = given.data
        nested = len(given.shape) > 1 and _NESTED.match(data)
        try:
            values = (self._nested if nested else self._flat).decode(data)
            # Ragged lists get this far.
            array = np.array(values, dtype=self._dtype)
        except OverflowError as error:
            fitting = f"whole numbers that fit {self._datatype}"
            raise RequestError(400, f"{where}.data: expected {fitting}, got others") from error
        except (ValueError, RecursionError) as error:
            at, what = parse_error(error)
            if not isinstance(error, msgspec.DecodeError):
                at, what = "", f"expected lists of shape {_shown(given.shape)}, got ragged ones"
            raise RequestError(400, f"{where}.data{at}: {what}") from error
        if nested and array.size:
            if array.shape != tuple(given.shape):
                raise RequestError(
                    400, f"{where}.data: expected lists of shape {dimensions(given.shape)}, got "
                    f"{dimensions(list(array.shape))}",
                )  # fmt: skip
            return array
        count = math.prod(given.shape)
        if array.size != count:
            raise RequestError(
                400, f"{where}.data: expected {count} values for shape "
                f"{dimensions(given.shape)}, got {array.size}",
            )  # fmt: skip
        return array.reshape(given.shape)

    def from_binary(
        self, where: str, shape: list[int], body: bytes, start: int, size: Any
    ) -> Array:
        """Return the array of `size` bytes of a body. Little-endian, row major."""
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise RequestError(
                400, f"{where}: expected binary_data_size in bytes, got {repr(size)[:40]}"
            )
        if start + size > len(body):
            raise RequestError(
                400,
                f"{where}: expected {size} bytes of binary data, got {max(0, len(body) - start)}",
            )
        count = math.prod(shape)
        if self._tensor.dtype == "string":
            return _strings(where, body[start : start + size], count).reshape(shape)
        if size != count * self._dtype.itemsize:
            raise RequestError(
                400, f"{where}: expected {count * self._dtype.itemsize} bytes for "
                f"{self._datatype}{dimensions(shape)}, got binary_data_size {size}",
            )  # fmt: skip
        if not count:
            return np.empty(shape, self._dtype)
        array = np.frombuffer(body, self._dtype, count, start).reshape(shape)
        if self._dtype.kind == "b" and array.view(np.uint8).max() > 1:
            raise RequestError(400, f"{where}: expected bytes 0 and 1 for BOOL, got others")
        # onnxruntime reads the body itself, where its kernels can.
        return array if array.flags.aligned else array.copy()

    def from_raw(self, where: str, body: bytes, *, one_row: bool) -> Array:
        """Return the array whose bytes are a whole body; its shape follows from their number."""
        if self._tensor.dtype == "string":
            if any(size not in {1, None} and isinstance(size, int) for size in self._shape):
                raise RequestError(400, f"{where}: expected more strings, got a body of one")
            return _decoded(where, [body]).reshape([1] * len(self._shape))
        shape = [1 if one_row and not at else size for at, size in enumerate(self._shape)]
        open_at = [at for at, size in enumerate(shape) if not isinstance(size, int)]
        known = math.prod(size for size in shape if isinstance(size, int))
        size_bytes = known * self._dtype.itemsize
        count, rest = divmod(len(body), size_bytes) if size_bytes else (1, len(body))
        if len(open_at) > 1 or rest or (not open_at and count != 1):
            raise RequestError(
                400, f"{where}: expected the bytes of {self._datatype}{dimensions(shape)}, "
                f"got {len(body)} of them",
            )  # fmt: skip
        sizes = [size if isinstance(size, int) else count for size in shape]
        return self.from_binary(where, sizes, body, 0, len(body))

    def schema(self, shape: dict[str, Any]) -> dict[str, Any]:
        """Return the JSON Schema of this input in a request. shape: that of its shape."""
        rank = len(self._shape)
        return {
            "type": "object",
            "required": ["name", "shape", "datatype"],
            "properties": {
                "name": {"const": self._tensor.name},
                "shape": {**shape, "minItems": rank, "maxItems": rank},
                "datatype": {"const": self._datatype},
                "parameters": PARAMETERS,
                "data": {"type": "array", "description": "nested as the shape, or flat"},
            },
        }


def _shown(shape: list[int]) -> str:
    """Return a client's shape for a person, of more dimensions than there are the number."""
    if len(shape) > _SHOWN_DIMENSIONS or max(map(abs, shape), default=0) > _SHOWN_SIZE:
        return f"one of {len(shape)} dimensions" if len(shape) > _SHOWN_DIMENSIONS else "a huge one"
    return dimensions(shape)


def _strings(where: str, data: bytes, count: int) -> Array:
    """Return the strings of binary data: each its length in 4 bytes, then its bytes."""
    found: list[bytes] = []
    at = 0
    while at + _LENGTH.size <= len(data) and len(found) < count:
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size + length
        found.append(data[at - length : at])
    if at != len(data) or len(found) != count:
        raise RequestError(
            400, f"{where}: expected {count} strings, each behind its length in 4 bytes, got "
            f"{len(data)} bytes that are not that",
        )  # fmt: skip
    return _decoded(where, found)


def _decoded(where: str, strings: list[bytes]) -> Array:
    array = np.empty(len(strings), dtype=object)
    try:
        array[:] = [string.decode() for string in strings]
    except UnicodeDecodeError as error:
        raise RequestError(400, f"{where}: expected strings in UTF-8, got other bytes") from error
    return array


def to_binary(array: Array) -> bytes:
    """Return an array as binary data."""
    if array.dtype.kind != "O":
        return array.tobytes()
    strings = [str(string).encode() for string in array.ravel()]
    return b"".join(piece for string in strings for piece in (_LENGTH.pack(len(string)), string))
