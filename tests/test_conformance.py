"""A sample of ONNX's own test cases; `make conformance` serves all of them."""

import re
from pathlib import Path

import pytest

from tests.conformance import Case, Refused, cases, serve

# A case or two of each type, rank and kind of tensor that the protocol knows.
SERVED = (
    "test_abs",  # FP32, rank 3
    "test_add_int8",
    "test_add_int16",
    "test_add_uint8",
    "test_add_uint16",
    "test_add_uint32",
    "test_add_uint64",
    "test_and_bcast4v4d",  # BOOL, two inputs of different shapes
    "test_cast_DOUBLE_to_FLOAT16",
    "test_constant",  # no input
    "test_gru_defaults",
    "test_identity",
    "test_lstm_with_initial_bias",
    "test_max_float64",
    "test_nonzero_example",  # INT64, of a size that no input says
    "test_reduce_sum_empty_set",  # a dimension of 0
    "test_sequence_model4",
    "test_string_concat",  # BYTES
    "test_string_concat_empty_string",
    "test_top_k",  # two outputs
    "test_where_long_example",  # three inputs
)
REFUSED = {
    "test_cast_FLOAT_to_BFLOAT16": r'"output" is tensor\(bfloat16\), expected a tensor of bool',
    "test_split_to_sequence_1": r'"seq" is seq\(tensor\(float\)\) \(export its elements',
    "test_stft": "golden rows: output .* values differ",
    "test_adagrad": "does not load it",
}


@pytest.fixture(scope="module")
def known() -> dict[str, Case]:
    """Every case, by name."""
    return {case.name: case for case in cases()}


@pytest.mark.parametrize("name", SERVED)
def test_a_case_is_served_with_the_outputs_that_onnx_publishes(
    known: dict[str, Case], tmp_path: Path, name: str
) -> None:
    """As JSON and as binary data."""
    serve(known[name], tmp_path)


@pytest.mark.parametrize("name", REFUSED)
def test_a_case_that_is_not_served_is_refused_with_the_reason(
    known: dict[str, Case], tmp_path: Path, name: str
) -> None:
    with pytest.raises(Refused) as refused:
        serve(known[name], tmp_path)

    assert re.search(REFUSED[name], str(refused.value))
