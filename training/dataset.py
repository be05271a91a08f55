"""Load a data set: one of scikit-learn's, or a CSV file.

A Dataset is complete: every value is a finite number in the range of float32, and every row has
a target.
"""

import csv
import hashlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes, load_digits, load_iris

from artifact.contract import Feature
from training.errors import TrainingError

Float64Array = NDArray[np.float64]
Task = Literal["classification", "regression"]
MAX_NUMERIC_CLASSES = 20
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Dataset:
    """Rows and their targets."""

    name: str
    purpose: str
    # (n, features) float64, in the units of the features.
    rows: Float64Array
    # (n,): int64 indices of `labels` for a classification, float64 for a regression.
    targets: NDArray[Any]
    # Their ranges are those of all rows.
    features: tuple[Feature, ...]
    # Empty for a regression.
    labels: tuple[str, ...]
    # Why the task is a classification or a regression.
    task_because: str
    # Of the CSV file, or of rows and targets as little-endian float64.
    sha256: str

    @property
    def task(self) -> Task:
        """The task: a data set with labels is a classification."""
        return "classification" if self.labels else "regression"


def task_of(text: str) -> Task:
    """Parse TASK. Raises TrainingError for an unknown task."""
    for task in get_args(Task):
        if text == task:
            return cast(Task, task)
    raise TrainingError(f'TASK: expected classification or regression, got "{text}"')


def load(name: str) -> Dataset:
    """Return one of scikit-learn's data sets: iris, digits, or diabetes.

    Nothing is downloaded. Raises TrainingError for an unknown name.
    """
    if name not in _LOADERS:
        raise TrainingError(f'DATASET: expected one of {", ".join(_LOADERS)}, got "{name}"')
    return _LOADERS[name]()


def _iris() -> Dataset:
    bunch = load_iris()
    return _from_bunch(
        name="iris",
        purpose="Name the species of an iris from four measurements of its flower",
        bunch=bunch,
        names=[name.removesuffix(" (cm)") for name in bunch.feature_names],
        units=["cm"] * 4,
        labels=tuple(str(label) for label in bunch.target_names),
    )


def _digits() -> Dataset:
    bunch = load_digits()
    return _from_bunch(
        name="digits",
        purpose="Read a handwritten digit from an image of 8 x 8 pixels",
        bunch=bunch,
        names=bunch.feature_names,
        units=["intensity, 0 to 16"] * 64,
        labels=tuple(str(label) for label in bunch.target_names),
    )


def _diabetes() -> Dataset:
    bunch = load_diabetes(scaled=False)
    return _from_bunch(
        name="diabetes",
        purpose="Estimate how far diabetes progresses within a year, from ten measurements",
        bunch=bunch,
        names=bunch.feature_names,
        # scikit-learn documents no other unit.
        units=["years", *[None] * 9],
        labels=(),
    )


_LOADERS: dict[str, Callable[[], Dataset]] = {
    "iris": _iris,
    "digits": _digits,
    "diabetes": _diabetes,
}


def _from_bunch(  # noqa: PLR0913 - facts that scikit-learn does not provide
    *,
    name: str,
    purpose: str,
    bunch: Any,
    names: list[str],
    units: Sequence[str | None],
    labels: tuple[str, ...],
) -> Dataset:
    rows = np.asarray(bunch.data, dtype=np.float64)
    targets = np.asarray(bunch.target)
    digest = hashlib.sha256(rows.astype("<f8").tobytes() + targets.astype("<f8").tobytes())
    return Dataset(
        name=name,
        purpose=purpose,
        rows=rows,
        targets=targets.astype(np.int64 if labels else np.float64),
        features=_features(rows, names, units),
        labels=labels,
        task_because=f"{name} has {f'{len(labels)} labels' if labels else 'no labels'}",
        sha256=digest.hexdigest(),
    )


def read_csv(path: Path, target: str, task: Task | None = None) -> Dataset:
    """Read a CSV file, whose first line names the columns.

    target: the column to predict; all others are features. task: classification or regression;
    None detects it from the target's values (see _detect_task). Raises TrainingError with file,
    line, column, and value for a cell that is not a finite number in the range of float32.
    """
    content = _read(path)
    table = _Table.parse(path, content)
    features = [column for column in table.header if column != target]
    if target not in table.header or not features:
        raise TrainingError(
            f"{path}: TARGET expected one of several columns {', '.join(table.header)}, "
            f'got "{target}"'
        )
    rows = np.column_stack([table.numbers(column) for column in features])
    targets, labels, because = _targets(table, target, task)
    return Dataset(
        name=path.name,
        purpose=f"Predict {target} from {', '.join(features)}",
        rows=rows,
        targets=targets,
        features=_features(rows, features, [None] * len(features)),
        labels=labels,
        task_because=because,
        sha256=hashlib.sha256(content).hexdigest(),
    )


@dataclass(frozen=True)
class _Table:
    """The text of a CSV file. Each row has as many cells as the header."""

    path: Path
    header: list[str]
    lines: list[int]
    cells: list[list[str]]

    @classmethod
    def parse(cls, path: Path, content: bytes) -> "_Table":
        try:
            # utf-8-sig drops the byte order mark that spreadsheets write.
            reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
            records = [
                (reader.line_num, [cell.strip() for cell in cells]) for cells in reader if cells
            ]
        except (csv.Error, UnicodeDecodeError) as error:
            raise TrainingError(f"{path}: expected CSV in UTF-8: {error}") from error
        if len(records) < 2:
            raise TrainingError(f"{path}: expected a line of names and rows, got {len(records)}")
        header = _header(path, records[0][1])
        for line, cells in records[1:]:
            if len(cells) != len(header):
                raise TrainingError(
                    f"{path} line {line}: expected {len(header)} cells, got {len(cells)}"
                )
        return cls(path, header, [line for line, _ in records[1:]], [row for _, row in records[1:]])

    def column(self, name: str) -> list[str]:
        """Return the cells of a column, top to bottom."""
        position = self.header.index(name)
        return [cells[position] for cells in self.cells]

    def numbers(self, name: str) -> Float64Array:
        """Return a numeric column, (n,). Raises TrainingError for the first invalid cell."""
        numbers = [_number(text) for text in self.column(name)]
        if None in numbers:
            raise self.invalid(name, numbers.index(None), "a finite number that fits float32")
        return np.array(numbers, dtype=np.float64)

    def invalid(self, name: str, position: int, expected: str) -> TrainingError:
        """Return the error for the cell at a position of a column."""
        return TrainingError(
            f'{self.path} line {self.lines[position]}, column "{name}": expected {expected}, '
            f'got "{self.column(name)[position]}"'
        )


def _header(path: Path, names: list[str]) -> list[str]:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if "" in names or repeated:
        raise TrainingError(
            f"{path} line 1: expected a name for each column, each once, separated by commas; got "
            f"{f'{repeated[0]!r} twice' if repeated and repeated[0] else 'a column without a name'}"
        )
    return names


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TrainingError(f"{path}: expected a file to read: {error.strerror}") from error


def _targets(
    table: _Table, target: str, task: Task | None
) -> tuple[NDArray[Any], tuple[str, ...], str]:
    """Return targets, labels, and the reason for the task."""
    texts = table.column(target)
    for position, text in enumerate(texts):
        # Spreadsheets write missing values as empty cells or NaN: neither is a label.
        if not text or _is_not_finite(text):
            raise table.invalid(target, position, "a label or a finite number")
    detected, because = _detect_task(table, target)
    if task is not None and task != detected:
        detected, because = task, f"TASK={task}"
    if detected == "regression":
        return table.numbers(target), (), because
    keys = [_label(text) for text in texts]
    labels = sorted(set(keys), key=_sort_key(keys))
    if len(labels) < 2:
        raise TrainingError(
            f'{table.path} column "{target}": expected two or more labels, got only "{labels[0]}"'
        )
    return np.array([labels.index(key) for key in keys], dtype=np.int64), tuple(labels), because


def _detect_task(table: _Table, target: str) -> tuple[Task, str]:
    """Return the task for the values of a target, and the reason.

    Text and up to 20 different whole numbers are labels.
    """
    numbers = {}
    for line, text in zip(table.lines, table.column(target), strict=True):
        number = _number(text)
        if number is None:
            return "classification", f'{target} holds text, such as "{text}" in line {line}'
        numbers[number] = text
    for number, text in numbers.items():
        if not number.is_integer():
            return "regression", f"{target} holds numbers that are not whole, such as {text}"
    few = len(numbers) <= MAX_NUMERIC_CLASSES
    return (
        "classification" if few else "regression",
        f"{target} holds {len(numbers)} different whole numbers",
    )


def _number(text: str) -> float | None:
    """Return the number in a cell, None unless it is finite and in the range of float32."""
    try:
        # Python accepts 1_000 as a number; other programs do not.
        number = math.nan if "_" in text else float(text)
    except ValueError:
        return None
    return number if abs(number) <= _FLOAT32_MAX else None


def _is_not_finite(text: str) -> bool:
    """Return whether a cell is nan, inf, or a number beyond the range of float32."""
    try:
        return "_" not in text and not abs(float(text)) <= _FLOAT32_MAX
    except ValueError:
        return False


def _label(text: str) -> str:
    """Return the label of a cell: numbers get one spelling (1, 1.0, and 01 are equal)."""
    number = _number(text)
    if number is None:
        return text
    return str(int(number)) if number.is_integer() else repr(number)


def _sort_key(labels: list[str]) -> Callable[[str], Any]:
    return float if all(_number(label) is not None for label in labels) else str


def _features(
    rows: Float64Array, names: list[str], units: Sequence[str | None]
) -> tuple[Feature, ...]:
    return tuple(
        Feature(name=str(name), unit=unit, minimum=float(column.min()), maximum=float(column.max()))
        for name, unit, column in zip(names, units, rows.T, strict=True)
    )
