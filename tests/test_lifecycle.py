"""The life of a model in every kind of store: publish, serve, publish again, roll back."""

from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.fakes import FAKES
from tests.servers import ROWS, start, wait_until
from training.train import train


@pytest.mark.parametrize("kind", FAKES)
def test_publish_pull_predict_move_the_alias_and_roll_back(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running server follows an alias in every kind of store."""
    (tmp_path / "store").mkdir()
    with FAKES[kind](tmp_path / "store") as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        publish = partial(train, dataset="iris", store=store.publish_uri, alias="stable")
        publish(version="1")
        settings = {"MODEL_CACHE_DIR": str(tmp_path / "cache"), "MODEL_POLL_SECONDS": "0.1"}

        with start(
            "model_load", f"{store.uri}/iris@stable", **store.environment, **settings
        ) as server:
            url = server.wait_until_ready().url
            assert served_version(url) == "1"
            publish(version="2")
            wait_until(lambda: served_version(url) == "2")
            store.put("iris/aliases/stable", b"1\n")
            wait_until(lambda: served_version(url) == "1")


def served_version(url: str) -> str:
    """Predict; return the version in the response's header."""
    answer = httpx.post(f"{url}/predict", json={"data": ROWS})
    assert answer.status_code == 200
    return str(answer.headers["model-version"])
