"""What a model is trained on: scikit-learn's own data sets, or a CSV file.

Made for pipeline.py and described in the contract. A Dataset is complete: every value
is a finite number that fits float32, every row has a target.
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
MOST_CLASSES_OF_NUMBERS = 20
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Dataset:
    """Rows with a target each.

    rows: (n, features) float64 in the features' units; a feature's range is that of all
    rows. targets: (n,), for a classification int64 that index `labels`, for a regression
    float64 and no labels. task_because: why it is the one or the other. sha256: of the
    CSV file's bytes, or of the rows and targets (little-endian float64) of one in code.
    """

    name: str
    purpose: str
    rows: Float64Array
    targets: NDArray[Any]
    features: tuple[Feature, ...]
    labels: tuple[str, ...]
    task_because: str
    sha256: str

    @property
    def task(self) -> Task:
        """What the labels say: a classification has some."""
        return "classification" if self.labels else "regression"


def task_of(text: str) -> Task:
    """Return the task that TASK names; raises TrainingError for any other word."""
    for task in get_args(Task):
        if text == task:
            return cast(Task, task)
    raise TrainingError(f'TASK: expected classification or regression, got "{text}"')


def load(name: str) -> Dataset:
    """Return one of scikit-learn's data sets: iris, digits or diabetes.

    Nothing is downloaded. Raises TrainingError for any other name.
    """
    if name not in _LOADERS:
        raise TrainingError(f'DATASET: expected one of {", ".join(_LOADERS)}, got "{name}"')
    return _LOADERS[name]()


def _iris() -> Dataset:
    found = load_iris()
    return _in_code(
        name="iris",
        purpose="Name the species of an iris from four measurements of its flower",
        found=found,
        names=[name.removesuffix(" (cm)") for name in found.feature_names],
        units=["cm"] * 4,
        labels=tuple(str(label) for label in found.target_names),
    )


def _digits() -> Dataset:
    found = load_digits()
    return _in_code(
        name="digits",
        purpose="Read a handwritten digit from an image of 8 x 8 pixels",
        found=found,
        names=found.feature_names,
        units=["intensity, 0 to 16"] * 64,
        labels=tuple(str(label) for label in found.target_names),
    )


def _diabetes() -> Dataset:
    found = load_diabetes(scaled=False)
    return _in_code(
        name="diabetes",
        purpose="Estimate how far diabetes progresses within a year, from ten measurements",
        found=found,
        names=found.feature_names,
        # scikit-learn documents this unit and no other.
        units=["years", *[None] * 9],
        labels=(),
    )


_LOADERS: dict[str, Callable[[], Dataset]] = {
    "iris": _iris,
    "digits": _digits,
    "diabetes": _diabetes,
}


def _in_code(  # noqa: PLR0913 - one for each fact that scikit-learn does not hand over
    *,
    name: str,
    purpose: str,
    found: Any,
    names: list[str],
    units: Sequence[str | None],
    labels: tuple[str, ...],
) -> Dataset:
    rows = np.asarray(found.data, dtype=np.float64)
    targets = np.asarray(found.target)
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
    """Return the rows of a CSV file, whose first line names the columns.

    target: the column to predict; all others are features. task: classification or
    regression; None decides by the target's values (see _decide). Raises TrainingError
    that names file, line, column and value for what is not a number that fits float32.
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
    """The text of a CSV file: as many cells in each row as the header has names."""

    path: Path
    header: list[str]
    lines: list[int]
    cells: list[list[str]]

    @classmethod
    def parse(cls, path: Path, content: bytes) -> "_Table":
        try:
            # A byte order mark, as spreadsheets write it, is no part of the first name.
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
        """Return the cells of a column, from the top."""
        position = self.header.index(name)
        return [cells[position] for cells in self.cells]

    def numbers(self, name: str) -> Float64Array:
        """Return a column of numbers, (n,); raises TrainingError at the first that is none."""
        numbers = [_number(text) for text in self.column(name)]
        if None in numbers:
            raise self.wrong(name, numbers.index(None), "a finite number that fits float32")
        return np.array(numbers, dtype=np.float64)

    def wrong(self, name: str, position: int, expected: str) -> TrainingError:
        """Return what to raise for the cell at a position of a column."""
        return TrainingError(
            f'{self.path} line {self.lines[position]}, column "{name}": expected {expected}, '
            f'got "{self.column(name)[position]}"'
        )


def _header(path: Path, names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if "" in names or twice:
        raise TrainingError(
            f"{path} line 1: expected a name for each column, each once, separated by commas; got "
            f"{f'{twice[0]!r} twice' if twice and twice[0] else 'a column without a name'}"
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
    """Return targets and labels as Dataset holds them, and why they are what they are."""
    texts = table.column(target)
    for position, text in enumerate(texts):
        # Spreadsheets write a missing value as nothing or as NaN: neither is a class.
        if not text or _is_no_number(text):
            raise table.wrong(target, position, "a label or a finite number")
    decided, because = _decide(table, target)
    if task is not None and task != decided:
        decided, because = task, f"TASK={task}"
    if decided == "regression":
        return table.numbers(target), (), because
    keys = [_label(text) for text in texts]
    labels = sorted(set(keys), key=_sort_key(keys))
    if len(labels) < 2:
        raise TrainingError(
            f'{table.path} column "{target}": expected two or more labels, got only "{labels[0]}"'
        )
    return np.array([labels.index(key) for key in keys], dtype=np.int64), tuple(labels), because


def _decide(table: _Table, target: str) -> tuple[Task, str]:
    """Return the task that a target's values suggest, and why.

    Text is a label, and so are whole numbers when they are few.
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
    few = len(numbers) <= MOST_CLASSES_OF_NUMBERS
    return (
        "classification" if few else "regression",
        f"{target} holds {len(numbers)} different whole numbers",
    )


def _number(text: str) -> float | None:
    """Return the number that a cell holds, None if it holds none that fits float32."""
    try:
        # Python reads 1_000 as a number; nobody else does.
        number = math.nan if "_" in text else float(text)
    except ValueError:
        return None
    return number if abs(number) <= _LARGEST else None


def _is_no_number(text: str) -> bool:
    """Tell whether a cell is a number's word for none: nan, inf, or one too large."""
    try:
        return "_" not in text and not abs(float(text)) <= _LARGEST
    except ValueError:
        return False


def _label(text: str) -> str:
    """Return one spelling for each number (1, 1.0 and 01 are the same label)."""
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
