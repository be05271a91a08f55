"""Load mode starts from any version of a local store."""

from pathlib import Path

import httpx

from tests.servers import start


def test_one_server_serves_two_versions_of_a_model(
    two_csv_versions: Path,
) -> None:
    """The reason for load mode: the same server serves a new model without a new image."""
    results = []
    for version in ("1", "2"):
        with start("model_load", two_csv_versions / "flowers" / version) as server:
            server.wait_until_ready()
            response = httpx.post(f"{server.url}/predict", json={"data": [[5.1, 3.5, 1.4, 0.2]]})
            results.append((response.headers["model-version"], response.json()["prediction"]))

    assert [version for version, _ in results] == ["1", "2"]
    assert results[0][1] != results[1][1]
