"""The schema of contract.json: old contracts load, and errors name every wrong field."""

import json
from pathlib import Path

import numpy as np
import pytest

from artifact.contract import (
    Contract,
    ContractMismatch,
    Tensor,
    arrays,
    nested_lists,
    parse_contract,
    read_contract,
)

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "tests" / "contracts"


@pytest.mark.parametrize("path", sorted(KEPT.glob("*.json")), ids=lambda path: path.stem)
def test_a_contract_of_an_older_format_loads(path: Path) -> None:
    """Servers are updated while published models stay as they are."""
    contract = parse_contract(path.read_text(encoding="utf-8"), path.name)

    assert contract.golden_inputs()
    assert parse_contract(contract.to_json(), "again") == contract


def test_contracts_of_older_formats_exist() -> None:
    assert list(KEPT.glob("*.json"))


def test_the_published_schema_is_up_to_date() -> None:
    """Regenerate it with `python -m artifact.contract > …` after a change."""
    published = (ROOT / "artifact" / "contract.schema.json").read_text(encoding="utf-8")

    assert json.loads(published) == Contract.model_json_schema()


@pytest.fixture
def fields(store: Path) -> dict[str, object]:
    """The fields of a valid contract."""
    text = (store / "iris" / "1" / "contract.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def differences(fields: dict[str, object]) -> list[str]:
    """The reasons why a contract is rejected."""
    with pytest.raises(ContractMismatch) as mismatch:
        parse_contract(json.dumps(fields), "iris/1")
    return mismatch.value.differences


def test_every_wrong_field_is_named(fields: dict[str, object]) -> None:
    del fields["purpose"]
    fields |= {"name": "Iris!", "extra": 1}

    messages = differences(fields)

    assert len(messages) == 3
    assert any(line.startswith("contract.json: purpose: Field required") for line in messages)
    assert any(
        "name: String should match pattern" in line and '"Iris!"' in line for line in messages
    )
    assert any(line.startswith("contract.json: extra: ") for line in messages)


def test_fewer_labels_than_outputs_are_rejected(fields: dict[str, object]) -> None:
    """An index without a label would be a 500 on rare inputs."""
    outputs = json.loads(json.dumps(fields["outputs"]))
    outputs[0]["labels"].pop()

    (message,) = differences(fields | {"outputs": outputs})

    assert '"probabilities" expected as many labels as the last dimension of' in message
    assert message.endswith("got 2")


def test_golden_rows_must_cover_every_tensor(fields: dict[str, object]) -> None:
    golden = dict(json.loads(json.dumps(fields["golden"])))
    golden["inputs"] = {}

    (message,) = differences(fields | {"golden": golden})

    assert "golden inputs expected for ['input'], got []" in message


def test_aliases_is_not_a_valid_version(fields: dict[str, object]) -> None:
    (message,) = differences(fields | {"version": "aliases"})

    assert 'got "aliases"' in message


def test_a_newer_format_is_rejected_by_its_number(fields: dict[str, object]) -> None:
    """An older server names the format, instead of every field that it does not know."""
    assert differences(fields | {"format": 3}) == ["contract.json: format expected 1 or 2, got 3"]


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("float16", [1.1, np.nan]),
        ("float32", [0.1, np.inf, -np.inf, 1e-45, 3.4028235e38]),
        ("float64", [0.1, 1e308, -0.0]),
        ("int64", [2**63 - 1, -(2**63)]),
        ("uint64", [2**64 - 1]),
        ("bool", [True, False]),
        ("string", ["a", "NaN"]),
    ],
)
def test_arrays_survive_json_exactly(dtype: str, values: list[object]) -> None:
    """A golden row that JSON changes would never be reproduced."""
    array = np.array([values], dtype=object if dtype == "string" else dtype)
    tensor = Tensor.model_validate({"name": "x", "dtype": dtype, "shape": (1, len(values))})

    text = json.dumps({"x": nested_lists(array)}, allow_nan=False)

    again = arrays((tensor,), json.loads(text))["x"]
    assert again.dtype == array.dtype
    np.testing.assert_array_equal(again, array)


def test_a_contract_has_one_line_for_each_row(store: Path) -> None:
    text = (store / "iris" / "1" / "contract.json").read_text(encoding="utf-8")

    lines = [line.strip() for line in text.splitlines()]
    assert '"labels": ["setosa", "versicolor", "virginica"],' in lines
    first_row = read_contract(store / "iris" / "1").golden.inputs["input"][0]
    assert f"{first_row}," in lines
    assert read_contract(store / "iris" / "1").to_json() == text
