"""The life of a model in every kind of store: publish, serve, publish again, roll back."""

from pathlib import Path

import httpx
import pytest

from tests.servers import ROWS, start
from tests.stand_ins import STAND_INS
from training.train import train


@pytest.mark.parametrize("kind", STAND_INS)
def test_publish_pull_predict_move_the_alias_and_roll_back(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One alias decides what the next start serves, whatever the store is."""
    (tmp_path / "store").mkdir()
    with STAND_INS[kind](tmp_path / "store") as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        served = []
        for version in ("1", "2"):
            train(dataset="iris", version=version, store=store.publish_uri, alias="stable")
            served.append(served_version(store.uri, store.environment, tmp_path / "cache"))
        store.put("iris/aliases/stable", b"1\n")
        served.append(served_version(store.uri, store.environment, tmp_path / "cache"))

    assert served == ["1", "2", "1"]


def served_version(uri: str, environment: dict[str, str], cache: Path) -> str:
    """Start a server of what the alias names now; return the version that its answer names."""
    settings = {**environment, "MODEL_CACHE_DIR": str(cache)}
    with start("model_load", f"{uri}/iris@stable", **settings) as server:
        answer = httpx.post(f"{server.wait_until_ready().url}/predict", json={"data": ROWS})
    assert answer.status_code == 200
    return str(answer.headers["model-version"])
