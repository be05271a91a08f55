"""Tests that a request gets the same prediction alone and under load, over HTTP."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from artifact.contract import Array, read_contract
from tests.own_models import VOCABULARY, save_text_encoder
from tests.servers import Start
from training.import_onnx import make_contract

REQUESTS, CONNECTIONS, TOKENS = 200, 20, 16
PATH = "/v2/models/encoder/infer"


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a dynamically quantised text encoder."""
    return save_text_encoder(tmp_path_factory.mktemp("encoder"))


def publish(encoder: Path, store: Path, **options: Any) -> Path:
    """Publish the encoder without a sample; return its artifact."""
    artifact = make_contract(
        onnx_file=encoder, name="encoder", version="1", store=store, purpose="a test", **options
    )
    return Path(artifact)


def bodies() -> list[bytes]:
    """Requests of one random text each; the texts have different lengths."""
    random = np.random.default_rng(0)
    requests = []
    for length in random.integers(1, TOKENS, REQUESTS, endpoint=True):
        tensors = {
            "input_ids": random.integers(0, VOCABULARY, TOKENS),
            "attention_mask": np.arange(TOKENS) < length,
        }
        inputs = [
            {"name": name, "shape": [1, TOKENS], "datatype": "INT64", "data": [*map(int, values)]}
            for name, values in tensors.items()
        ]
        requests.append(json.dumps({"inputs": inputs}).encode())
    return requests


def scores_alone(url: str) -> Array:
    """The scores of every text, each requested after the previous response."""
    with httpx.Client(base_url=url, timeout=20) as client:
        responses = [client.post(PATH, content=body) for body in bodies()]
    return np.array([response.json()["outputs"][0]["data"] for response in responses])


def scores_under_load(url: str) -> Array:
    """The scores of every text, when requests of all connections wait at the same time."""
    address = urlsplit(url)
    pid = httpx.get(f"{url}/inventory").json()["pid"]
    waiting = bodies()
    scores = []
    with ExitStack() as stack:
        connections = [
            HTTPConnection(str(address.hostname), address.port, timeout=20)
            for _ in range(CONNECTIONS)
        ]
        for connection in connections:
            stack.callback(connection.close)
            connection.request("GET", "/health")
            connection.getresponse().read()
        while waiting:
            with stopped(pid):
                for connection in connections:
                    connection.request("POST", PATH, waiting.pop(0))
            for connection in connections:
                response = json.loads(connection.getresponse().read())
                scores.append(response["outputs"][0]["data"])
    return np.array(scores)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process, so that it receives everything sent meanwhile in a single turn."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def count_changed(alone: Array, under_load: Array, artifact: Path) -> int:
    """The number of texts with different scores under load."""
    golden = read_contract(artifact).golden
    same = np.isclose(under_load, alone, rtol=golden.rtol, atol=golden.atol)
    return int((~same.all(axis=1)).sum())


def test_predictions_of_a_dynamically_quantised_encoder_stay_the_same_under_load(
    server: Start, encoder: Path, tmp_path: Path
) -> None:
    artifact = publish(encoder, tmp_path)
    contract = read_contract(artifact)
    url = server(artifact).wait_until_ready().url

    alone, under_load = scores_alone(url), scores_under_load(url)

    assert len(np.unique(alone, axis=0)) == REQUESTS
    assert count_changed(alone, under_load, artifact) == 0
    assert contract.batching is False
    assert contract.golden.source == (
        "generated, seed 0; batching is off: a row's answer depends on the other rows in the run"
    )


def test_predictions_change_under_load_if_batching_is_forced(
    server: Start, encoder: Path, tmp_path: Path
) -> None:
    """Proof that the comparison above can fail."""
    artifact = publish(encoder, tmp_path, batching="true")
    url = server(artifact).wait_until_ready().url

    alone, under_load = scores_alone(url), scores_under_load(url)

    assert count_changed(alone, under_load, artifact) > 0
