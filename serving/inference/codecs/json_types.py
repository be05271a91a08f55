"""Types for msgspec that accept exactly the JSON values that fit a tensor's dtype.

Both codecs use them, so /predict and the Open Inference Protocol reject the same values.
"""

from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from artifact.contract import Dtype, numpy_dtype


def value_type(dtype: Dtype) -> Any:
    """Return the msgspec type of a single value. It rejects values that overflow the dtype."""
    if dtype == "string":
        return str
    numpy = numpy_dtype(dtype)
    if numpy.kind == "b":
        return bool
    if numpy.kind == "f":
        if dtype == "float64":
            return float
        # Values that round to the largest finite number are valid: numpy and Java print the
        # largest float32 as 3.4028235e38, which is slightly more.
        info = np.finfo(numpy)
        limit = float(info.max) * (1 + float(info.eps) / 4)
        return Annotated[float, Meta(gt=-limit, lt=limit)]
    limits = np.iinfo(numpy)
    # msgspec's bounds are int64. Larger values than a uint64 raise OverflowError in numpy.
    upper = int(limits.max) if limits.max < 2**63 else None
    return Annotated[int, Meta(ge=int(limits.min), le=upper)]


def parse_error(error: Exception) -> tuple[str, str]:
    """Split a decoder's error into the JSON path, such as `inputs[0]` or "", and the message."""
    message, _, path = str(error).partition(" - at `$")
    # Lower case, because the message follows the path. "JSON is malformed" keeps its capitals.
    first = message[:1].lower() if message[1:2].islower() else message[:1]
    return path.rstrip("`").removeprefix("."), f"{first}{message[1:]}"
