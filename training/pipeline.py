"""Split the data, fit a scikit-learn pipeline with its preprocessing, and evaluate it.

Deterministic: the split has a fixed seed, and one thread adds numbers in a fixed order.
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
MAX_ITERATIONS = 1000
# The smallest number for which a stratified quarter holds out one row of each label.
_MIN_ROWS_PER_LABEL = 4
# The smallest number that holds out two rows, which r2 needs.
_MIN_ROWS = 8


@dataclass(frozen=True)
class Split:
    """A data set, divided into rows for fitting and held-out rows for the evaluation."""

    rows: Float64Array
    targets: NDArray[Any]
    held_out_rows: Float64Array
    held_out_targets: NDArray[Any]


def split(dataset: Dataset) -> Split:
    """Hold out a quarter of the rows, stratified by label for a classification.

    Raises TrainingError if the data set has too few rows.
    """
    classification = dataset.task == "classification"
    _reject_too_few_rows(dataset)
    rows, held_out_rows, targets, held_out_targets = train_test_split(
        dataset.rows,
        dataset.targets,
        test_size=HELD_OUT_FRACTION,
        random_state=SEED,
        stratify=dataset.targets if classification else None,
    )
    return Split(rows, targets, held_out_rows, held_out_targets)


def fit(dataset: Dataset, data: Split) -> Pipeline:
    """Fit a pipeline to the rows that are not held out.

    Raises TrainingError if the classifier does not converge.
    """
    estimator = (
        LogisticRegression(max_iter=MAX_ITERATIONS) if dataset.task == "classification" else Ridge()
    )
    pipeline = make_pipeline(StandardScaler(), estimator)
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            return pipeline.fit(data.rows, data.targets)
        except ConvergenceWarning as warning:
            raise TrainingError(
                f"{dataset.name}: expected to converge within {MAX_ITERATIONS} iterations: "
                f"{' '.join(str(warning).split())}"
            ) from warning


def evaluate(dataset: Dataset, data: Split, pipeline: Pipeline) -> dict[str, float]:
    """Return the metrics of a pipeline on the held-out rows.

    Classification: accuracy and log_loss (nats). Regression: r2 and mean_absolute_error (in the
    target's unit).
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
    """Return scikit-learn's outputs in float64: probabilities, (n, labels), or values, (n, 1)."""
    with threadpool_limits(limits=1):
        if dataset.task == "classification":
            return np.asarray(pipeline.predict_proba(rows), dtype=np.float64)
        return np.asarray(pipeline.predict(rows), dtype=np.float64).reshape(-1, 1)


def _reject_too_few_rows(dataset: Dataset) -> None:
    if dataset.task == "regression":
        if len(dataset.rows) < _MIN_ROWS:
            raise TrainingError(
                f"{dataset.name}: expected {_MIN_ROWS} or more rows, got {len(dataset.rows)}"
            )
        return
    counts = np.bincount(dataset.targets)
    rare = [
        f'{count} of "{dataset.labels[label]}"'
        for label, count in enumerate(counts)
        if count < _MIN_ROWS_PER_LABEL
    ]
    if rare:
        raise TrainingError(
            f"{dataset.name}: expected {_MIN_ROWS_PER_LABEL} or more rows of each label, got "
            f"{', '.join(rare[:5])}{', …' if len(rare) > 5 else ''} (a classification, because "
            f"{dataset.task_because})"
        )
