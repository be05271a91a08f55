"""Data sets from scikit-learn and from CSV files."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from training.dataset import load, read_csv, task_of
from training.errors import TrainingError


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "rows", "features", "labels"),
    [("iris", 150, 4, 3), ("digits", 1797, 64, 10), ("diabetes", 442, 10, 0)],
)
def test_the_three_data_sets_differ_in_what_a_server_could_assume(
    name: str, rows: int, features: int, labels: int
) -> None:
    """One data set alone would hide a fixed number of columns, or labels that must exist."""
    dataset = load(name)
    assert dataset.rows.shape == (rows, features)
    assert len(dataset.features) == features
    assert len(dataset.labels) == labels


def test_features_say_unit_and_range() -> None:
    first = load("iris").features[0]
    assert (first.name, first.unit) == ("sepal length", "cm")
    assert (first.minimum, first.maximum) == (4.3, 7.9)
    assert load("diabetes").features[0].unit == "years"


def test_an_unknown_data_set_is_answered_with_the_known_ones() -> None:
    with pytest.raises(TrainingError, match='iris, digits, diabetes, got "wine"'):
        load("wine")


def test_text_in_the_target_column_makes_a_classification(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "x,kind,y", "1,blue,2", "3,amber,4.5", "5,blue,-6")
    dataset = read_csv(path, "kind")
    assert dataset.task == "classification"
    assert dataset.labels == ("amber", "blue")
    assert dataset.targets.tolist() == [1, 0, 1]
    assert [feature.name for feature in dataset.features] == ["x", "y"]
    assert dataset.rows.tolist() == [[1, 2], [3, 4.5], [5, -6]]
    assert 'text, such as "blue" in line 2' in dataset.task_because
    assert dataset.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_few_whole_numbers_make_a_classification_sorted_as_numbers(tmp_path: Path) -> None:
    """Sorted as text, 10 would stand before 9."""
    dataset = read_csv(write(tmp_path / "a.csv", "x,y", "1,10", "2,9", "3,10.0", "4,09"), "y")
    assert dataset.labels == ("9", "10")
    assert dataset.targets.tolist() == [1, 0, 1, 0]


def test_many_whole_numbers_make_a_regression(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "x,y", *(f"{i},{i}" for i in range(21)))
    assert read_csv(path, "y").task == "regression"
    path = write(tmp_path / "a.csv", "x,y", *(f"{i},{i}" for i in range(20)))
    assert read_csv(path, "y").task == "classification"


def test_fractions_make_a_regression(tmp_path: Path) -> None:
    dataset = read_csv(write(tmp_path / "a.csv", "x,y", "1,1", "2,1.5"), "y")
    assert dataset.task == "regression"
    assert dataset.labels == ()
    assert dataset.targets.tolist() == [1, 1.5]


def test_task_overrides_what_the_target_suggests(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "x,y", "1,1", "2,1.5")
    assert read_csv(path, "y", "classification").labels == ("1", "1.5")
    path = write(tmp_path / "a.csv", "x,y", "1,1", "2,2")
    assert read_csv(path, "y", "regression").targets.dtype == np.float64
    with pytest.raises(TrainingError, match=r'TASK: expected .*, got "ranking"'):
        task_of("ranking")


def test_a_spreadsheets_byte_order_mark_spaces_and_blank_lines_are_no_data(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfx, y\r\n1, a\r\n\r\n2, b\r\n")
    dataset = read_csv(path, "y")
    assert dataset.features[0].name == "x"
    assert dataset.labels == ("a", "b")


@pytest.mark.parametrize("value", ["", "many", "nan", "inf", "1e39", "1_000", "NA"])
def test_a_feature_that_is_no_number_is_named_by_line_and_column(
    tmp_path: Path, value: str
) -> None:
    path = write(tmp_path / "a.csv", "width,y", "1,a", "", f"{value},b")
    with pytest.raises(TrainingError) as raised:
        read_csv(path, "y")
    assert str(raised.value) == (
        f'{path} line 4, column "width": expected a finite number that fits float32, got "{value}"'
    )


@pytest.mark.parametrize("value", ["", "NaN", "-inf"])
def test_a_missing_target_is_not_a_label(tmp_path: Path, value: str) -> None:
    """Taken as text, one missing value would turn a regression into a classification."""
    path = write(tmp_path / "a.csv", "x,y", "1,0.5", f"2,{value}")
    with pytest.raises(TrainingError, match=f'line 3, column "y": .* got "{value}"'):
        read_csv(path, "y")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["x,y", "1,a,2"], "line 2: expected 2 cells, got 3"),
        (["x,x,y", "1,2,a"], "line 1: .*'x' twice"),
        (["x,,y", "1,2,a"], "line 1: .*a column without a name"),
        (["x,y"], "expected a line of names and rows, got 1"),
        (["x,z", "1,2"], 'TARGET expected one of several columns x, z, got "y"'),
        (["y", "1"], 'TARGET expected one of several columns y, got "y"'),
        (["x,y", '1,"a'], "expected CSV in UTF-8: unexpected end of data"),
        (["x,y", "1,a", "2,a"], 'expected two or more labels, got only "a"'),
    ],
)
def test_a_csv_that_is_no_table_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        read_csv(write(tmp_path / "a.csv", *lines), "y")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"none\.csv: expected a file to read: No such file"):
        read_csv(tmp_path / "none.csv", "y")
    latin = tmp_path / "latin.csv"
    latin.write_bytes("größe,y\n1,a\n".encode("latin-1"))
    with pytest.raises(TrainingError, match="expected CSV in UTF-8"):
        read_csv(latin, "y")
