"""Golden rows over HTTP, with real servers of both modes."""

from pathlib import Path

import pytest

from artifact.contract import read_contract
from release.kubernetes import golden
from release.kubernetes.golden import PredictionError
from release.local.server_process import ServerProcess
from tests.servers import DATASETS, Start, start


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_server_reproduces_its_golden_rows(
    running: dict[str, ServerProcess], store: Path, dataset: str
) -> None:
    golden.check(running[dataset].url, read_contract(store / dataset / "1"))


def test_another_version_of_the_model_fails(mode: str, two_csv_versions: Path) -> None:
    """Both versions have the same name and format, so only the predictions differ."""
    contract = read_contract(two_csv_versions / "flowers" / "2")

    with start(mode, two_csv_versions / "flowers" / "1") as server:
        url = server.wait_until_ready().url
        with pytest.raises(PredictionError, match=r"golden rows of flowers/2: row \d+ expected"):
            golden.check(url, contract)
        assert golden.agreement(url, contract) > 0.5


def test_a_model_of_another_format_fails(running: dict[str, ServerProcess], store: Path) -> None:
    contract = read_contract(store / "digits" / "1")

    with pytest.raises(PredictionError, match="expected status 200, got 400"):
        golden.check(running["iris"].url, contract)


def test_an_unreachable_server_fails(store: Path) -> None:
    with pytest.raises(PredictionError, match="no response to golden rows"):
        golden.check("http://127.0.0.1:1", read_contract(store / "iris" / "1"))


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_model_agrees_with_itself(
    running: dict[str, ServerProcess], store: Path, dataset: str
) -> None:
    """Some of the datasets have labels and some do not."""
    contract = read_contract(store / dataset / "1")

    assert golden.agreement(running[dataset].url, contract) == 1


def test_shuffled_labels_do_not_agree(server: Start, store: Path) -> None:
    """A wrong join of data and labels produces such a model."""
    contract = read_contract(store / "iris" / "1")
    (name, rows), *_ = contract.golden.outputs.items()
    shuffled = {name: [[*row[1:], row[0]] for row in rows]}
    other = contract.golden.model_copy(update={"outputs": shuffled})
    url = server(store / "iris" / "1").wait_until_ready().url

    assert golden.agreement(url, contract.model_copy(update={"golden": other})) == 0
