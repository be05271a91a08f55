"""One tensor of the Open Inference Protocol: its data as JSON, nested or flat, and as binary data.

Part of the codec in open_inference.py. Source of the binary form: Triton's
docs/protocol/extension_binary_data.md.
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

# The protocol's names of the contract's dtypes.
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
# Limits of an error message.
_MAX_SHOWN_DIMENSIONS, _MAX_SHOWN_SIZE = 16, 1 << 62
_MAX_SHOWN_CHARACTERS = 40
# In binary data the length of a string precedes its bytes.
_STRING_LENGTH = struct.Struct("<I")

Parameters = dict[str, str | int | float | bool | None]
# JSON Schema of Parameters.
PARAMETERS_SCHEMA = {
    "type": ["object", "null"],
    "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
}


class TensorFields(msgspec.Struct):
    """An input tensor in a request. Its data stays undecoded until its datatype is checked."""

    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters | None = None
    data: msgspec.Raw | UnsetType = UNSET


class TensorCodec:
    """Decodes one input of a contract. Immutable.

    `where` in its methods is the start of an error message, such as `inputs[0] "x"`. All errors
    are RequestErrors with status 400.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._datatype = DATATYPES[tensor.dtype]
        self._dtype = numpy_dtype(tensor.dtype)
        self._shape = tensor.shape
        self._named_axes = [
            (axis, name) for axis, name in enumerate(tensor.shape) if isinstance(name, str)
        ]
        flat: Any = list[value_type(tensor.dtype)]  # type: ignore[misc]
        nested = flat
        for _ in tensor.shape[1:]:
            nested = list[nested]  # type: ignore[valid-type]
        self._flat = msgspec.json.Decoder(flat)
        self._nested = msgspec.json.Decoder(nested)

    def check(
        self, where: str, fields: TensorFields, sizes: dict[str, int], *, max_values: int
    ) -> None:
        """Raise RequestError if datatype or shape differ from the contract.

        sizes: sizes of named dimensions in this request so far; new names are added. max_values:
        limit for the product of all dimensions, in which a dimension of 0 counts as 1. Without it
        a request for an empty tensor of a few bytes could get a response of megabytes.
        """
        if fields.datatype != self._datatype:
            actual = fields.datatype[:_MAX_SHOWN_CHARACTERS]
            raise RequestError(400, f"{where}: expected datatype {self._datatype}, got {actual}")
        is_valid = len(fields.shape) == len(self._shape) and min(fields.shape, default=0) >= 0
        if not is_valid or any(
            size != expected
            for size, expected in zip(fields.shape, self._shape, strict=True)
            if isinstance(expected, int)
        ):
            raise RequestError(
                400,
                f"{where}: expected shape {dimensions(self._shape)}, got {_shown(fields.shape)}",
            )
        if math.prod(size or 1 for size in fields.shape) > max_values:
            raise RequestError(
                400, f"{where}: expected at most {max_values} values, got {_shown(fields.shape)}"
            )
        for axis, name in self._named_axes:
            if sizes.setdefault(name, fields.shape[axis]) != fields.shape[axis]:
                raise RequestError(
                    400, f"{where}: expected shape {dimensions(self._shape)} with "
                    f"{name} = {sizes[name]}, got {_shown(fields.shape)}",
                )  # fmt: skip

    def from_json(self, where: str, fields: TensorFields) -> Array:
        """Return the array of JSON data, which is nested like its shape or flat in row-major order.

        fields: passed check(), with data. The array has the contract's dtype and fields.shape.
        """
        data: Any = fields.data
        is_nested = len(fields.shape) > 1 and _NESTED.match(data)
        try:
            values = (self._nested if is_nested else self._flat).decode(data)
            # Raises ValueError for ragged lists, which msgspec accepts.
            array = np.array(values, dtype=self._dtype)
        except OverflowError as error:
            raise RequestError(
                400,
                f"{where}.data: expected whole numbers that fit {self._datatype}, got larger ones",
            ) from error
        except (ValueError, RecursionError) as error:
            path, message = parse_error(error)
            if not isinstance(error, msgspec.DecodeError):
                path, message = (
                    "",
                    f"expected lists of shape {_shown(fields.shape)}, got ragged ones",
                )
            raise RequestError(400, f"{where}.data{path}: {message}") from error
        if is_nested and array.size:
            if array.shape != tuple(fields.shape):
                raise RequestError(
                    400, f"{where}.data: expected lists of shape {dimensions(fields.shape)}, got "
                    f"{dimensions(list(array.shape))}",
                )  # fmt: skip
            return array
        # Nested lists without a value, such as [[], []], do not show all dimensions: like flat
        # data, they only need the right number of values.
        count = math.prod(fields.shape)
        if array.size != count:
            raise RequestError(
                400, f"{where}.data: expected {count} values for shape "
                f"{dimensions(fields.shape)}, got {array.size}",
            )  # fmt: skip
        return array.reshape(fields.shape)

    def from_binary(
        self, where: str, shape: list[int], body: bytes, start: int, size: Any
    ) -> Array:
        """Return the array of binary data: little-endian, row-major order.

        shape: passed check(). start, size: position of the data in the body, in bytes; size is
        the client's binary_data_size, of any JSON type. If aligned, the array is a view of the
        body, and read-only.
        """
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            actual = repr(size)[:_MAX_SHOWN_CHARACTERS]
            raise RequestError(400, f"{where}: expected binary_data_size in bytes, got {actual}")
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
            raise RequestError(400, f"{where}: expected bytes 0 and 1 for BOOL, got larger ones")
        # onnxruntime uses the memory of an array without a copy, and its kernels need alignment.
        return array if array.flags.aligned else array.copy()

    def from_raw(self, where: str, body: bytes, *, single_row: bool) -> Array:
        """Return the array whose binary data is the whole body.

        single_row: whether the first dimension is 1. The size of another dynamic dimension follows
        from the number of bytes; two or more are ambiguous, and rejected. A string is the whole
        body, without its length.
        """
        if self._tensor.dtype == "string":
            if any(size not in {1, None} and isinstance(size, int) for size in self._shape):
                raise RequestError(400, f"{where}: expected several strings, got a body of one")
            return _to_strings(where, [body]).reshape([1] * len(self._shape))
        shape = [1 if single_row and not axis else size for axis, size in enumerate(self._shape)]
        dynamic = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
        fixed_values = math.prod(size for size in shape if isinstance(size, int))
        fixed_bytes = fixed_values * self._dtype.itemsize
        count, rest = divmod(len(body), fixed_bytes) if fixed_bytes else (1, len(body))
        if len(dynamic) > 1 or rest or (not dynamic and count != 1):
            raise RequestError(
                400, f"{where}: expected the bytes of {self._datatype}{dimensions(shape)}, "
                f"got {len(body)} of them",
            )  # fmt: skip
        sizes = [size if isinstance(size, int) else count for size in shape]
        return self.from_binary(where, sizes, body, 0, len(body))

    def schema(self, shape: dict[str, Any]) -> dict[str, Any]:
        """Return the JSON Schema of this input in a request. shape: the schema of any shape."""
        rank = len(self._shape)
        return {
            "type": "object",
            "required": ["name", "shape", "datatype"],
            "properties": {
                "name": {"const": self._tensor.name},
                "shape": {**shape, "minItems": rank, "maxItems": rank},
                "datatype": {"const": self._datatype},
                "parameters": PARAMETERS_SCHEMA,
                "data": {"type": "array", "description": "nested like the shape, or flat"},
            },
        }


def to_binary(array: Array) -> bytes:
    """Return the binary data of an array: little-endian, row-major order.

    Strings are UTF-8, each preceded by its length in bytes as uint32.
    """
    if array.dtype.kind != "O":
        return array.tobytes()
    strings = [str(string).encode() for string in array.ravel()]
    return b"".join(
        part for string in strings for part in (_STRING_LENGTH.pack(len(string)), string)
    )


def _shown(shape: list[int]) -> str:
    """Return a client's shape for an error message, shortened if it is huge."""
    if len(shape) > _MAX_SHOWN_DIMENSIONS:
        return f"{len(shape)} dimensions"
    if max(map(abs, shape), default=0) > _MAX_SHOWN_SIZE:
        return "a huge shape"
    return dimensions(shape)


def _strings(where: str, data: bytes, count: int) -> Array:
    """Return the strings of binary data, shape (count,)."""
    strings: list[bytes] = []
    offset = 0
    while offset + _STRING_LENGTH.size <= len(data) and len(strings) < count:
        (length,) = _STRING_LENGTH.unpack_from(data, offset)
        offset += _STRING_LENGTH.size + length
        strings.append(data[offset - length : offset])
    if offset != len(data) or len(strings) != count:
        raise RequestError(
            400, f"{where}: expected {count} strings, each after its length in 4 bytes, got "
            f"{len(data)} bytes in another format",
        )  # fmt: skip
    return _to_strings(where, strings)


def _to_strings(where: str, strings: list[bytes]) -> Array:
    array = np.empty(len(strings), dtype=object)
    try:
        array[:] = [string.decode() for string in strings]
    except UnicodeDecodeError as error:
        raise RequestError(400, f"{where}: expected strings in UTF-8, got other bytes") from error
    return array
