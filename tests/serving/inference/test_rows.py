"""The JSON codec of shapes and types the data sets of scikit-learn do not have."""

import json

import numpy as np
import pytest

from artifact.contract import Contract, Tensor
from serving.errors import RequestError
from serving.inference.codecs.rows import RowsCodec, rows_unsupported_reason
from tests.serving.contracts import contract_of


def tensor(dtype: str, *shape: int | str | None) -> Tensor:
    return Tensor.model_validate({"name": "x", "dtype": dtype, "shape": shape})


def rows_of(given: Tensor) -> RowsCodec:
    return RowsCodec(contract_of([given], [tensor("float32", "N", 2)]), max_rows=8)


@pytest.mark.parametrize(
    ("given", "data"),
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
def test_what_the_contract_allows_is_decoded_exactly(given: Tensor, data: object) -> None:
    array = rows_of(given).decode(json.dumps({"data": data}).encode())["x"]

    assert array.dtype == given.dtype
    assert array.tolist() == data


@pytest.mark.parametrize(
    ("given", "data", "said"),
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
def test_what_the_contract_does_not_allow_is_named(given: Tensor, data: object, said: str) -> None:
    with pytest.raises(RequestError) as refused:
        rows_of(given).decode(json.dumps({"data": data}).encode())

    assert refused.value.status == 400
    assert said in refused.value.message


def test_nan_and_infinity_are_null_in_an_answer() -> None:
    """JSON has no word for them, and a client's parser must not fail."""
    outputs = [np.array([[np.nan, np.inf]], dtype=np.float32)]

    body = rows_of(tensor("float32", "N", 1)).encode(outputs)

    assert json.loads(body) == {"prediction": [[None, None]]}


@pytest.mark.parametrize(
    "inputs",
    [
        [tensor("string", "N", 1)],
        [tensor("float32")],
        [tensor("float32", "N"), tensor("float32", "N").model_copy(update={"name": "y"})],
    ],
)
def test_a_model_that_takes_no_rows_says_what_it_takes(inputs: list[Tensor]) -> None:
    contract: Contract = contract_of(inputs, [tensor("float32", "N", 2)])

    reason = rows_unsupported_reason(contract)

    assert reason is not None
    assert f'"x" {inputs[0].signature}' in reason


@pytest.mark.parametrize("output", [tensor("float32"), tensor("float32", 3)])
def test_a_model_that_gives_no_rows_says_what_it_gives(output: Tensor) -> None:
    """Three numbers for any number of rows are not a row each."""
    reason = rows_unsupported_reason(contract_of([tensor("float32", "N", 2)], [output]))

    assert reason is not None
    assert f'gives "x" {output.signature}' in reason
