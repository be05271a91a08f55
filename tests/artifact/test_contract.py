"""The schema of contract.json: old ones keep loading, wrong ones are told what is wrong."""

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
def test_a_contract_of_an_older_release_keeps_loading(path: Path) -> None:
    """Servers are updated under models that stay."""
    contract = parse_contract(path.read_text(encoding="utf-8"), path.name)

    assert contract.golden_inputs()
    assert parse_contract(contract.to_json(), "again") == contract


def test_there_are_contracts_of_older_releases() -> None:
    assert list(KEPT.glob("*.json"))


def test_the_published_schema_is_the_codes() -> None:
    """Regenerate it with `python -m artifact.contract > …` after a change."""
    published = (ROOT / "artifact" / "contract.schema.json").read_text(encoding="utf-8")

    assert json.loads(published) == Contract.model_json_schema()


@pytest.fixture
def fields(store: Path) -> dict[str, object]:
    """The fields of a right contract."""
    text = (store / "iris" / "1" / "contract.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def refused(fields: dict[str, object]) -> list[str]:
    """Why a contract is refused."""
    with pytest.raises(ContractMismatch) as mismatch:
        parse_contract(json.dumps(fields), "iris/1")
    return mismatch.value.differences


def test_every_wrong_field_is_named(fields: dict[str, object]) -> None:
    del fields["purpose"]
    fields |= {"name": "Iris!", "extra": 1}

    found = refused(fields)

    assert len(found) == 3
    assert any(line.startswith("contract.json: purpose: Field required") for line in found)
    assert any("name: String should match pattern" in line and '"Iris!"' in line for line in found)
    assert any(line.startswith("contract.json: extra: ") for line in found)


def test_fewer_labels_than_outputs_are_refused(fields: dict[str, object]) -> None:
    """An index without a label would be a 500 on rare inputs."""
    outputs = json.loads(json.dumps(fields["outputs"]))
    outputs[0]["labels"].pop()

    (found,) = refused(fields | {"outputs": outputs})

    assert '"probabilities" expected as many labels as the last dimension of' in found
    assert found.endswith("got 2")


def test_golden_rows_are_for_every_tensor(fields: dict[str, object]) -> None:
    golden = dict(json.loads(json.dumps(fields["golden"])))
    golden["inputs"] = {}

    (found,) = refused(fields | {"golden": golden})

    assert "golden inputs expected for ['input'], got []" in found


def test_aliases_is_no_version(fields: dict[str, object]) -> None:
    (found,) = refused(fields | {"version": "aliases"})

    assert 'got "aliases"' in found


def test_a_newer_format_is_refused_by_its_number(fields: dict[str, object]) -> None:
    """An older server says so, instead of listing fields it does not know."""
    assert refused(fields | {"format": 3}) == ["contract.json: format expected 1 or 2, got 3"]


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
    """A golden row that changed on its way through JSON would be wrong by itself."""
    array = np.array([values], dtype=object if dtype == "string" else dtype)
    tensor = Tensor.model_validate({"name": "x", "dtype": dtype, "shape": (1, len(values))})

    text = json.dumps({"x": nested_lists(array)}, allow_nan=False)

    again = arrays((tensor,), json.loads(text))["x"]
    assert again.dtype == array.dtype
    np.testing.assert_array_equal(again, array)


def test_a_contract_is_written_one_line_a_row(store: Path) -> None:
    text = (store / "iris" / "1" / "contract.json").read_text(encoding="utf-8")

    lines = [line.strip() for line in text.splitlines()]
    assert '"labels": ["setosa", "versicolor", "virginica"],' in lines
    first_row = read_contract(store / "iris" / "1").golden.inputs["input"][0]
    assert f"{first_row}," in lines
    assert read_contract(store / "iris" / "1").to_json() == text
