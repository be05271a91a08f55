"""Whole trainings: data in, an artifact in a store out."""

import io
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from artifact.contract import read_contract
from artifact.errors import StoreError
from artifact.verify import differences, open_session
from training.dataset import load
from training.errors import TrainingError
from training.export import to_onnx
from training.train import train


def tree(store: Path) -> dict[str, bytes]:
    """Every file of a store, hidden ones too, with its bytes."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file()
    }


def write_flowers(path: Path, rows: slice) -> Path:
    """Rows of iris as CSV, with text labels."""
    iris = load("iris")
    lines = [
        ",".join([*map(str, row), iris.labels[target]])
        for row, target in zip(iris.rows[rows], iris.targets[rows], strict=True)
    ]
    path.write_text("a,b,c,d,species\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("dataset", ["iris", "digits", "diabetes"])
def test_an_artifact_passes_the_servers_own_checks(dataset: str, tmp_path: Path) -> None:
    path = Path(train(dataset=dataset, version="1", store=tmp_path))
    assert path == tmp_path / dataset / "1"
    contract = read_contract(path)
    assert differences(contract, path) == []
    assert contract.origin.command == f"make train DATASET={dataset} VERSION=1"
    assert contract.origin.agreement
    assert contract.origin.agreement.rows * 3 < len(load(dataset).rows)
    rows = max(8, len(contract.prediction.labels))
    assert contract.golden_inputs()["input"].shape == (rows, len(load(dataset).features))
    assert contract.prediction.labels == load(dataset).labels
    assert contract.inputs[0].features == load(dataset).features


@pytest.mark.parametrize("dataset", ["iris", "digits", "diabetes"])
def test_the_same_training_twice_gives_the_same_bytes(dataset: str, tmp_path: Path) -> None:
    """A release is pinned by hashes: who trains it again must be able to prove it."""
    train(dataset=dataset, version="1", store=tmp_path / "a")
    train(dataset=dataset, version="1", store=tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert len(tree(tmp_path / "a")) == 2


def test_an_existing_version_is_rejected_before_training_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(dataset="iris", version="1", store=tmp_path, alias="stable")
    before = tree(tmp_path)
    monkeypatch.setattr("training.dataset.load", lambda name: pytest.fail(f"loaded {name}"))
    with pytest.raises(StoreError, match=r"iris/1: this version exists.*another VERSION"):
        train(dataset="iris", version="1", store=tmp_path, alias="canary")
    assert tree(tmp_path) == before


def test_a_model_that_disagrees_with_scikit_learn_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export_another(*arguments: object) -> bytes:
        dataset, fitted, name = arguments
        fitted.steps[-1][1].coef_ += 0.01  # type: ignore[attr-defined]
        model = to_onnx(dataset, fitted, name)  # type: ignore[arg-type]
        fitted.steps[-1][1].coef_ -= 0.01  # type: ignore[attr-defined]
        return model

    monkeypatch.setattr("training.train.to_onnx", export_another)
    with pytest.raises(TrainingError, match="disagree"):
        train(dataset="diabetes", version="1", store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_features_beyond_the_precision_of_float32_are_not_published(tmp_path: Path) -> None:
    """Seconds since 1970 differ by less than float32 resolves; the model would be noise."""
    lines = [f"{1_700_000_000 + i},{i * 0.5}" for i in range(100)]
    data = tmp_path / "a.csv"
    data.write_text("seconds,y\n" + "\n".join(lines) + "\n")
    with pytest.raises(TrainingError, match=r"disagree.*lose their digits in float32"):
        train(data=data, target="y", name="a", version="1", store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_two_versions_from_two_files_fit_one_server(tmp_path: Path) -> None:
    """The same algorithm on new data: tensors stay, weights and hashes change."""
    contracts = []
    for version, rows in (("1", slice(0, None, 2)), ("2", slice(1, None, 2))):
        data = write_flowers(tmp_path / f"{version}.csv", rows)
        path = Path(
            train(
                data=data,
                target="species",
                name="flowers",
                version=version,
                store=tmp_path / "store",
            )
        )
        contracts.append(read_contract(path))
        assert differences(contracts[-1], path) == []
    first, second = contracts
    assert first.inputs[0].signature == second.inputs[0].signature == "float32[N,4]"
    assert first.outputs == second.outputs
    assert first.prediction.labels == ("setosa", "versicolor", "virginica")
    assert first.model.sha256 != second.model.sha256
    assert first.origin.dataset != second.origin.dataset
    assert first.origin.command == (
        f"make train DATA={tmp_path}/1.csv TARGET=species NAME=flowers VERSION=1"
    )


def test_a_classification_of_two_labels_has_one_column_per_label(tmp_path: Path) -> None:
    data = write_flowers(tmp_path / "a.csv", slice(0, 100))
    path = Path(
        train(data=data, target="species", name="two", version="1", store=tmp_path / "store")
    )
    contract = read_contract(path)
    assert contract.prediction.signature == "float32[N,2]"
    rows = np.array([[5.1, 3.5, 1.4, 0.2], [6.0, 2.8, 4.5, 1.4]], dtype=np.float32)
    (answer,) = open_session(contract, path).run(None, {"input": rows})
    assert [contract.prediction.labels[i] for i in answer.argmax(axis=1)] == [
        "setosa",
        "versicolor",
    ]


def test_a_model_that_ignores_its_features_is_reported(tmp_path: Path) -> None:
    """A constant feature explains nothing, and every server would pass the golden rows."""
    data = tmp_path / "a.csv"
    data.write_text("x,y\n" + "1,a\n1,b\n" * 8)
    shown = io.StringIO()

    path = train(
        data=data, target="y", name="flat", version="1", store=tmp_path, console=Console(file=shown)
    )

    contract = read_contract(Path(path))
    constant = 'output "probabilities" does not depend on the input'
    assert contract.batching is False
    assert contract.golden.source == (
        f"4 held-out rows of a.csv; batching is off: {constant}; "
        f"the golden rows verify nothing: {constant}"
    )
    assert f"warning: batching is off: {constant}\n" in shown.getvalue()
    assert f"warning: the golden rows verify nothing: {constant}\n" in shown.getvalue()


def test_a_regression_on_a_csv_file_has_no_labels(tmp_path: Path) -> None:
    data = tmp_path / "a.csv"
    data.write_text("x,y\n" + "\n".join(f"{i},{i * 2 + 0.5}" for i in range(40)) + "\n")
    path = Path(train(data=data, target="y", name="line", version="1", store=tmp_path / "store"))
    contract = read_contract(path)
    assert contract.prediction.labels == ()
    assert contract.origin.metrics["r2"] > 0.99
    assert contract.purpose == "Predict y from x"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected DATASET=.* or DATA=file.csv, got neither"),
        ({"dataset": "iris", "data": "a.csv"}, "got both"),
        ({"data": "a.csv", "target": "y"}, "^NAME: expected with DATA, got none"),
        ({"data": "a.csv"}, "^TARGET and NAME: expected with DATA, got none"),
        ({"dataset": "iris", "target": "y"}, "TARGET: expected only with DATA"),
        ({"dataset": "iris", "task": "regression"}, "TASK: expected classification of iris"),
        ({"dataset": "iris", "name": "Iris"}, "NAME: .*, got 'Iris'"),
        ({"dataset": "iris", "version": "../1"}, r"VERSION: .*, got '\.\./1'"),
        ({"dataset": "iris", "version": "aliases"}, "VERSION: .*folder of the aliases"),
        ({"dataset": "iris", "version": ""}, "VERSION: expected a value, got none"),
        ({"dataset": "iris", "alias": "a/b", "name": "A"}, "NAME: .*; ALIAS: .*, got 'a/b'"),
        ({"dataset": "iris", "store": "https://host/models"}, "STORE: .*got https://host/models"),
    ],
)
def test_an_invalid_option_is_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((TrainingError, StoreError), match=message):
        train(**{"version": "1", "store": str(tmp_path / "store"), **options})
    assert not (tmp_path / "store").exists()


def test_name_purpose_and_owner_are_recorded(tmp_path: Path) -> None:
    path = Path(train(
        dataset="iris", version="1", store=tmp_path.as_uri(),
        name="flowers", purpose="a test", owner="Ada", alias="stable",
    ))  # fmt: skip
    contract = read_contract(path)
    assert (contract.name, contract.purpose, contract.owner) == ("flowers", "a test", "Ada")
    assert contract.origin.command == (
        "make train DATASET=iris NAME=flowers VERSION=1 PURPOSE='a test' OWNER=Ada"
    )
    alias = tmp_path / "flowers" / "aliases" / "stable"
    assert alias.read_text() == "1\n"
    assert stat.S_IMODE(alias.stat().st_mode) == 0o644


def test_golden_rows_show_every_label(tmp_path: Path) -> None:
    """A model that never predicts a label must fail the check."""
    contract = read_contract(Path(train(dataset="iris", version="1", store=tmp_path)))

    best = contract.golden_outputs()["probabilities"].argmax(axis=1)

    assert set(best) == {0, 1, 2}
