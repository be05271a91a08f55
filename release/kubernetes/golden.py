"""Check over HTTP that a server predicts the golden rows of the contract that it should serve."""

import json
from typing import Any

import httpx
import numpy as np

from artifact.contract import Array, Contract
from artifact.verify import agree
from serving.inference.codecs.rows import rows_unsupported_reason

_TIMEOUT_SECONDS = 10


class PredictionError(Exception):
    """A server does not respond, or its predictions differ from the contract."""


def check(url: str, contract: Contract) -> None:
    """Request the golden rows; return if all predictions are within the contract's tolerance.

    A model that /predict does not serve runs its golden rows only at start-up. For such a model
    the sha256 in /metadata is compared. Raises PredictionError.
    """
    if rows_unsupported_reason(contract):
        _check_sha256(url, contract)
        return
    actual, expected = predict(url, contract), _expected(contract)
    if actual.shape != expected.shape:
        raise PredictionError(
            f"golden rows of {contract.name}/{contract.version}: expected shape "
            f"{expected.shape}, got {actual.shape}"
        )
    golden = contract.golden
    # JSON has no infinities: /predict returns null, which is NaN here, for them as well.
    expected = np.where(np.isfinite(expected), expected, np.nan)
    agrees = agree(actual, expected, rtol=golden.rtol, atol=golden.atol)
    if not agrees.all():
        first = tuple(int(index) for index in np.argwhere(~agrees)[0])
        raise PredictionError(
            f"golden rows of {contract.name}/{contract.version}: row {first[0]} expected "
            f"{expected[first]}, got {actual[first]}; {(~agrees).sum()} of {agrees.size} values "
            "differ"
        )


def predict(url: str, contract: Contract) -> Array:
    """Return the predictions of /predict for a contract's golden inputs, as float64.

    Raises PredictionError for every response that is not a prediction.
    """
    (rows,) = contract.golden_inputs().values()
    try:
        response = httpx.post(
            f"{url}/predict", json={"data": rows.tolist()}, timeout=_TIMEOUT_SECONDS
        )
    except httpx.HTTPError as error:
        raise PredictionError(
            f"no response to golden rows: {error or type(error).__name__}"
        ) from error
    if response.status_code != httpx.codes.OK:
        raise PredictionError(f"golden rows: expected status 200, got {_as_text(response)}")
    try:
        return np.array(response.json()["prediction"], dtype=float)
    except (ValueError, KeyError, TypeError):
        message = f"golden rows: expected a prediction, got {_as_text(response)}"
        raise PredictionError(message) from None


def agreement(url: str, contract: Contract) -> float:
    """Return the share of golden rows on which the server agrees with the contract.

    A row agrees if its label is the same. Without labels it agrees if every value is within one
    standard deviation of all golden outputs. Raises PredictionError.
    """
    actual, expected = predict(url, contract), _expected(contract)
    if actual.shape != expected.shape:
        return 0.0
    if contract.prediction.labels:
        return float(np.mean(actual.argmax(axis=-1) == expected.argmax(axis=-1)))
    is_close = np.abs(actual - expected) <= np.nanstd(expected)
    return float(np.mean(is_close.reshape(len(is_close), -1).all(axis=-1)))


def check_ready(url: str) -> None:
    """Return if a server is ready, which includes its own golden rows; raise PredictionError."""
    try:
        httpx.get(f"{url}/v2/health/ready", timeout=_TIMEOUT_SECONDS).raise_for_status()
    except httpx.HTTPError as error:
        raise PredictionError(f"not ready: {error or type(error).__name__}") from error


def _expected(contract: Contract) -> Array:
    """Return the golden outputs as /predict returns them: with at least two dimensions."""
    expected = contract.golden_outputs()[contract.prediction.name]
    return expected[:, None] if expected.ndim == 1 else expected


def _check_sha256(url: str, contract: Contract) -> None:
    try:
        metadata: dict[str, Any] = httpx.get(f"{url}/metadata", timeout=_TIMEOUT_SECONDS).json()
    except (httpx.HTTPError, json.JSONDecodeError) as error:
        raise PredictionError(f"no metadata: {error or type(error).__name__}") from error
    if metadata.get("sha256") != contract.model.sha256:
        raise PredictionError(
            f"{contract.name}/{contract.version}: expected sha256 {contract.model.sha256}, "
            f"got {metadata.get('sha256')}"
        )


def _as_text(response: httpx.Response) -> str:
    return f"{response.status_code}: {response.text[:200]}"
