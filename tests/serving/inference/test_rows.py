"""Tests of the rows codec with shapes and dtypes that scikit-learn's data sets do not have."""

import json

import numpy as np
import pytest

from artifact.contract import Contract, Tensor
from serving.errors import RequestError
from serving.inference.codecs.rows import RowsCodec, rows_unsupported_reason
from tests.serving.contracts import contract_of


def tensor(dtype: str, *shape: int | str | None) -> Tensor:
    return Tensor.model_validate({"name": "x", "dtype": dtype, "shape": shape})


def codec_of(input_tensor: Tensor) -> RowsCodec:
    """The codec of a contract with this input."""
    return RowsCodec(contract_of([input_tensor], [tensor("float32", "N", 2)]), max_rows=8)


@pytest.mark.parametrize(
    ("input_tensor", "data"),
    [
        (tensor("int64", "N", 2), [[1, -2], [3, 4]]),
        (tensor("uint8", "N", 2), [[0, 255]]),
        (tensor("uint64", "N", 1), [[2**64 - 1]]),
        (tensor("float64", "N", 1), [[1e300]]),
        (tensor("float16", "N", 1), [[65504]]),
        (tensor("bool", "N", 2), [[True, False]]),
        (tensor("float32", "N"), [1, 2.5]),
        (tensor("float32", "N", 2, 3), [[[1, 2, 3], [4, 5, 6]]]),
        (tensor("float32", "N", None), [[1, 2, 3], [4, 5, 6]]),
        (tensor("float32", 2, 1), [[1], [2]]),
    ],
    ids=lambda value: value.signature if isinstance(value, Tensor) else "",
)
def test_valid_rows_are_decoded_exactly(input_tensor: Tensor, data: object) -> None:
    array = codec_of(input_tensor).decode(json.dumps({"data": data}).encode())["x"]

    assert array.dtype == input_tensor.dtype
    assert array.tolist() == data


@pytest.mark.parametrize(
    ("input_tensor", "data", "message"),
    [
        (tensor("int64", "N", 1), [[1.5]], "data[0][0]: expected a whole number that fits int64"),
        (tensor("int64", "N", 1), [[2**63]], f"that fits int64, got {2**63}"),
        (tensor("uint8", "N", 1), [[-1]], "data[0][0]: expected a whole number that fits uint8"),
        (tensor("uint8", "N", 1), [[256]], "that fits uint8, got 256"),
        (tensor("uint64", "N", 1), [[2**64]], f"that fits uint64, got {2**64}"),
        (tensor("float16", "N", 1), [[65520]], "a number that fits float16, got 65520"),
        (tensor("bool", "N", 1), [[1]], "data[0][0]: expected true or false, got 1"),
        (tensor("float32", "N"), [[1]], "data[0]: expected a number, got a list of 1"),
        (tensor("float32", "N", 2, 1), [[[1], [1, 2]]], "data[0][1]: expected a list of 1 number"),
        (tensor("float32", "N", 2, 1), [[1, 2]], "data[0][0]: expected a list of 1 number, got 1"),
        (
            tensor("float32", "N", None),
            [[]],
            "data[0]: expected a list of one number or more, got 0",
        ),
        (tensor("float32", "N", "N"), [[1, 2]], "data: expected float32[N,N], got [1,2]"),
        (
            tensor("float32", "N", None),
            [[1, 2], [3]],
            "data[1]: expected as many values as in data[0], 2, got 1",
        ),
        (tensor("float32", 2, 1), [[1]], "data: expected a list of 2 rows, got 1"),
    ],
    ids=lambda value: value.signature if isinstance(value, Tensor) else "",
)
def test_invalid_rows_are_rejected_with_the_index(
    input_tensor: Tensor, data: object, message: str
) -> None:
    with pytest.raises(RequestError) as rejected:
        codec_of(input_tensor).decode(json.dumps({"data": data}).encode())

    assert rejected.value.status == 400
    assert message in rejected.value.message


def test_nan_and_infinity_are_null_in_a_response() -> None:
    """JSON cannot represent them, and a client's parser must not fail."""
    outputs = [np.array([[np.nan, np.inf]], dtype=np.float32)]

    body = codec_of(tensor("float32", "N", 1)).encode(outputs)

    assert json.loads(body) == {"prediction": [[None, None]]}


@pytest.mark.parametrize(
    "inputs",
    [
        [tensor("string", "N", 1)],
        [tensor("float32")],
        [tensor("float32", "N"), tensor("float32", "N").model_copy(update={"name": "y"})],
    ],
)
def test_reason_names_the_inputs_that_do_not_support_rows(inputs: list[Tensor]) -> None:
    contract: Contract = contract_of(inputs, [tensor("float32", "N", 2)])

    reason = rows_unsupported_reason(contract)

    assert reason is not None
    assert f'"x" {inputs[0].signature}' in reason


@pytest.mark.parametrize("output", [tensor("float32"), tensor("float32", 3)])
def test_reason_names_the_output_without_a_row_per_input_row(output: Tensor) -> None:
    """Three numbers for any number of rows are not a row for each."""
    reason = rows_unsupported_reason(contract_of([tensor("float32", "N", 2)], [output]))

    assert reason is not None
    assert f'gives "x" {output.signature}' in reason
