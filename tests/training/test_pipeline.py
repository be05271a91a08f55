"""Splitting, fitting and evaluating."""

from dataclasses import replace

import numpy as np
import pytest

from training import pipeline
from training.dataset import load
from training.errors import TrainingError


def test_held_out_rows_are_never_fitted() -> None:
    iris = load("iris")
    data = pipeline.split(iris)
    assert len(data.rows) + len(data.held_out_rows) == 150
    fitted = pipeline.fit(iris, data)
    assert fitted["standardscaler"].n_samples_seen_ == len(data.rows)


def test_every_label_is_on_both_sides_of_the_split() -> None:
    digits = load("digits")
    data = pipeline.split(digits)
    assert set(data.targets) == set(data.held_out_targets) == set(range(10))


@pytest.mark.parametrize(("name", "metric", "at_least"), [
    ("iris", "accuracy", 0.9), ("digits", "accuracy", 0.95), ("diabetes", "r2", 0.3),
])  # fmt: skip
def test_the_models_learn(name: str, metric: str, at_least: float) -> None:
    """A model that has learnt nothing would agree with its export just as well."""
    dataset = load(name)
    data = pipeline.split(dataset)
    assert pipeline.evaluate(dataset, data, pipeline.fit(dataset, data))[metric] > at_least


def test_a_label_with_too_few_rows_is_named() -> None:
    iris = load("iris")
    few = replace(iris, rows=iris.rows[:103], targets=iris.targets[:103])
    with pytest.raises(TrainingError, match='4 or more rows of each label, got 3 of "virginica"'):
        pipeline.split(few)


def test_the_smallest_accepted_data_sets_can_be_split() -> None:
    """The limit must hold: with one row less scikit-learn itself fails."""
    iris = load("iris")
    rows = np.r_[0:4, 50:54, 100:104]
    data = pipeline.split(replace(iris, rows=iris.rows[rows], targets=iris.targets[rows]))
    assert set(data.targets) == set(data.held_out_targets) == {0, 1, 2}


def test_a_regression_with_too_few_rows_is_rejected() -> None:
    diabetes = load("diabetes")
    few = replace(diabetes, rows=diabetes.rows[:7], targets=diabetes.targets[:7])
    with pytest.raises(TrainingError, match="expected 8 or more rows, got 7"):
        pipeline.split(few)


def test_a_fit_that_does_not_converge_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MAX_ITERATIONS", 1)
    iris = load("iris")
    with pytest.raises(TrainingError, match="iris: expected to converge within 1 iterations"):
        pipeline.fit(iris, pipeline.split(iris))
