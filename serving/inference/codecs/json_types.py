"""One value of a tensor as JSON has it: which the decoder lets through.

Used by rows.py and tensors.py, so that both ways to ask refuse the same values.
"""

from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from artifact.contract import Dtype, numpy_dtype


def value_type(dtype: Dtype) -> Any:
    """Return the type of one value: what overflows the dtype is refused by the decoder."""
    if dtype == "string":
        return str
    numpy = numpy_dtype(dtype)
    if numpy.kind == "b":
        return bool
    if numpy.kind == "f":
        if dtype == "float64":
            return float
        # What is rounded to the largest number still fits it.
        largest = np.finfo(numpy)
        limit = float(largest.max) * (1 + float(largest.eps) / 4)
        return Annotated[float, Meta(gt=-limit, lt=limit)]
    info = np.iinfo(numpy)
    # msgspec's bounds are int64; numpy refuses what is larger than a uint64.
    return Annotated[int, Meta(ge=int(info.min), le=int(info.max) if info.max < 2**63 else None)]


def parse_error(error: Exception) -> tuple[str, str]:
    """Return where a decoder found something wrong, such as `inputs[0]`, and what it said."""
    what, _, where = str(error).partition(" - at `$")
    # "JSON is malformed" stays as it is.
    begins = what[:1].lower() if what[1:2].islower() else what[:1]
    return where.rstrip("`").removeprefix("."), f"{begins}{what[1:]}"
