"""Serve a sample of ONNX's test cases; `make conformance` serves all of them."""

import re
from pathlib import Path

import pytest

from tests.conformance import Case, Rejected, cases, serve

# At least one case for each datatype, several ranks, and the special cases of the protocol.
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
    "test_nonzero_example",  # INT64, the output's size depends on the values
    "test_reduce_sum_empty_set",  # a dimension of 0
    "test_sequence_model4",
    "test_string_concat",  # BYTES
    "test_string_concat_empty_string",
    "test_top_k",  # two outputs
    "test_where_long_example",  # three inputs
)
REJECTED = {
    "test_cast_FLOAT_to_BFLOAT16": r'"output" is tensor\(bfloat16\), expected a tensor of bool',
    "test_split_to_sequence_1": r'"seq" is seq\(tensor\(float\)\) \(export its elements',
    "test_stft": "golden rows: output .* values differ",
    "test_adagrad": "does not load it",
}


@pytest.fixture(scope="module")
def cases_by_name() -> dict[str, Case]:
    """All cases, by name."""
    return {case.name: case for case in cases()}


@pytest.mark.parametrize("name", SERVED)
def test_case_is_served_with_the_published_outputs(
    cases_by_name: dict[str, Case], tmp_path: Path, name: str
) -> None:
    """As JSON and as binary data."""
    serve(cases_by_name[name], tmp_path)


@pytest.mark.parametrize("name", REJECTED)
def test_unsupported_case_is_rejected_with_the_reason(
    cases_by_name: dict[str, Case], tmp_path: Path, name: str
) -> None:
    with pytest.raises(Rejected) as rejected:
        serve(cases_by_name[name], tmp_path)

    assert re.search(REJECTED[name], str(rejected.value))
