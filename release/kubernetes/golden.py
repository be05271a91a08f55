"""Golden rows asked over HTTP: whether what answers there is the model that it should be."""

import json
from typing import Any

import httpx
import numpy as np

from artifact.contract import Array, Contract
from artifact.verify import agree
from serving.inference.codecs.rows import why_no_rows

_SECONDS = 10


class WrongAnswer(Exception):  # noqa: N818 - what it says of a model
    """What a server answered to golden rows, where that is not what training saw."""


def check(url: str, contract: Contract) -> None:
    """Ask for the golden rows of a contract; return if they come out right.

    A model that /predict is not for runs its golden rows at its start only: then its name and
    sha256 are asked. Raises WrongAnswer.
    """
    if why_no_rows(contract):
        _check_sha256(url, contract)
        return
    got, expected = predict(url, contract), contract.golden_outputs()[contract.prediction.name]
    if expected.ndim == 1:
        expected = expected[:, None]
    if got.shape != expected.shape:
        raise WrongAnswer(
            f"golden rows of {contract.name}/{contract.version}: expected shape "
            f"{expected.shape}, got {got.shape}"
        )
    golden = contract.golden
    # What is no number is null in JSON.
    expected = np.where(np.isfinite(expected), expected, np.nan)
    right = agree(got, expected, rtol=golden.rtol, atol=golden.atol)
    if not right.all():
        first = tuple(int(index) for index in np.argwhere(~right)[0])
        raise WrongAnswer(
            f"golden rows of {contract.name}/{contract.version}: row {first[0]} expected "
            f"{expected[first]}, got {got[first]}; {(~right).sum()} of {right.size} values differ"
        )


def predict(url: str, contract: Contract) -> Array:
    """Return what /predict answers to the golden inputs of a contract, as float64.

    Raises WrongAnswer for another answer than a prediction.
    """
    (rows,) = contract.golden_inputs().values()
    try:
        answer = httpx.post(f"{url}/predict", json={"data": rows.tolist()}, timeout=_SECONDS)
    except httpx.HTTPError as error:
        raise WrongAnswer(f"no answer to golden rows: {error or type(error).__name__}") from error
    if answer.status_code != httpx.codes.OK:
        raise WrongAnswer(f"golden rows: expected status 200, got {_said(answer)}")
    try:
        return np.array(answer.json()["prediction"], dtype=float)
    except (ValueError, KeyError, TypeError):
        raise WrongAnswer(f"golden rows: expected a prediction, got {_said(answer)}") from None


def agreement(url: str, contract: Contract) -> float:
    """Return on how many of a contract's golden rows what answers there is of its opinion.

    A share of the rows: those with the same label; without labels those whose values are
    within one standard deviation of all golden outputs. Raises WrongAnswer.
    """
    got, expected = predict(url, contract), contract.golden_outputs()[contract.prediction.name]
    if expected.ndim == 1:
        expected = expected[:, None]
    if got.shape != expected.shape:
        return 0.0
    if contract.prediction.labels:
        return float(np.mean(got.argmax(axis=-1) == expected.argmax(axis=-1)))
    close = np.abs(got - expected) <= np.nanstd(expected)
    return float(np.mean(close.reshape(len(close), -1).all(axis=-1)))


def check_ready(url: str) -> None:
    """Return if a server is ready, which it is only after golden rows. Raises WrongAnswer."""
    try:
        httpx.get(f"{url}/v2/health/ready", timeout=_SECONDS).raise_for_status()
    except httpx.HTTPError as error:
        raise WrongAnswer(f"not ready: {error or type(error).__name__}") from error


def _check_sha256(url: str, contract: Contract) -> None:
    try:
        about: dict[str, Any] = httpx.get(f"{url}/metadata", timeout=_SECONDS).json()
    except (httpx.HTTPError, json.JSONDecodeError) as error:
        raise WrongAnswer(f"no metadata: {error or type(error).__name__}") from error
    if about.get("sha256") != contract.model.sha256:
        raise WrongAnswer(
            f"{contract.name}/{contract.version}: expected sha256 {contract.model.sha256}, "
            f"got {about.get('sha256')}"
        )


def _said(answer: httpx.Response) -> str:
    return f"{answer.status_code}: {answer.text[:200]}"
