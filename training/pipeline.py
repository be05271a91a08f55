"""A scikit-learn Pipeline with its preprocessing inside, fitted and evaluated.

Between dataset.py and export.py. The same data gives the same bits: the split has a
seed, and one thread adds up in one order.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, r2_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from training.dataset import Dataset, Float64Array
from training.errors import TrainingError

HELD_OUT_FRACTION = 0.25
SEED = 0
MOST_ITERATIONS = 1000
# With a quarter held out, each label then has a row on either side.
_FEWEST_ROWS_A_LABEL = 4
# Two of them are held out: the fewest that r2 is defined for.
_FEWEST_ROWS = 8


@dataclass(frozen=True)
class Split:
    """A data set in two: what the model learns from and what it is judged by."""

    rows: Float64Array
    targets: NDArray[Any]
    held_out_rows: Float64Array
    held_out_targets: NDArray[Any]


def split(dataset: Dataset) -> Split:
    """Hold out a quarter of the rows, of each label its share.

    Raises TrainingError when there are too few rows to do so.
    """
    classification = dataset.task == "classification"
    _refuse_too_few_rows(dataset)
    rows, held_out_rows, targets, held_out_targets = train_test_split(
        dataset.rows,
        dataset.targets,
        test_size=HELD_OUT_FRACTION,
        random_state=SEED,
        stratify=dataset.targets if classification else None,
    )
    return Split(rows, targets, held_out_rows, held_out_targets)


def fit(dataset: Dataset, data: Split) -> Pipeline:
    """Return a pipeline that knows the rows that are not held out.

    Raises TrainingError when the classifier does not converge.
    """
    estimator = (
        LogisticRegression(max_iter=MOST_ITERATIONS)
        if dataset.task == "classification"
        else Ridge()
    )
    pipeline = make_pipeline(StandardScaler(), estimator)
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            return pipeline.fit(data.rows, data.targets)
        except ConvergenceWarning as warning:
            raise TrainingError(
                f"{dataset.name}: expected to converge within {MOST_ITERATIONS} iterations: "
                f"{' '.join(str(warning).split())}"
            ) from warning


def evaluate(dataset: Dataset, data: Split, pipeline: Pipeline) -> dict[str, float]:
    """Return the metrics of a pipeline on the held-out rows.

    accuracy and log_loss (nats) of a classification; r2 and mean_absolute_error (in the
    target's unit) of a regression.
    """
    with threadpool_limits(limits=1):
        predicted = pipeline.predict(data.held_out_rows)
        if dataset.task == "regression":
            return {
                "r2": float(r2_score(data.held_out_targets, predicted)),
                "mean_absolute_error": float(mean_absolute_error(data.held_out_targets, predicted)),
            }
        probabilities = pipeline.predict_proba(data.held_out_rows)
    labels = range(len(dataset.labels))
    return {
        "accuracy": float(accuracy_score(data.held_out_targets, predicted)),
        "log_loss": float(log_loss(data.held_out_targets, probabilities, labels=labels)),
    }


def expected(dataset: Dataset, pipeline: Pipeline, rows: Float64Array) -> Float64Array:
    """Return what the exported model must answer: probabilities, (n, labels), or (n, 1)."""
    with threadpool_limits(limits=1):
        if dataset.task == "classification":
            return np.asarray(pipeline.predict_proba(rows), dtype=np.float64)
        return np.asarray(pipeline.predict(rows), dtype=np.float64).reshape(-1, 1)


def _refuse_too_few_rows(dataset: Dataset) -> None:
    if dataset.task == "regression":
        if len(dataset.rows) < _FEWEST_ROWS:
            raise TrainingError(
                f"{dataset.name}: expected {_FEWEST_ROWS} or more rows, got {len(dataset.rows)}"
            )
        return
    counts = np.bincount(dataset.targets)
    rare = [
        f'{count} of "{dataset.labels[label]}"'
        for label, count in enumerate(counts)
        if count < _FEWEST_ROWS_A_LABEL
    ]
    if rare:
        raise TrainingError(
            f"{dataset.name}: expected {_FEWEST_ROWS_A_LABEL} or more rows of each label, got "
            f"{', '.join(rare[:5])}{', …' if len(rare) > 5 else ''} (a classification, because "
            f"{dataset.task_because})"
        )
