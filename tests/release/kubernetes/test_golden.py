"""Golden rows over HTTP, against real servers of both modes."""

from pathlib import Path

import pytest

from artifact.contract import read_contract
from release.kubernetes import golden
from release.kubernetes.golden import WrongAnswer
from release.local.server_process import ServerProcess
from tests.servers import DATASETS, Start, start


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_right_model_answers_right(
    running: dict[str, ServerProcess], store: Path, dataset: str
) -> None:
    golden.check(running[dataset].url, read_contract(store / dataset / "1"))


def test_another_version_does_not(mode: str, two_csv_versions: Path) -> None:
    """It is served under the same name, with the same format."""
    contract = read_contract(two_csv_versions / "flowers" / "2")

    with start(mode, two_csv_versions / "flowers" / "1") as server:
        url = server.wait_until_ready().url
        with pytest.raises(WrongAnswer, match=r"golden rows of flowers/2: row \d+ expected"):
            golden.check(url, contract)
        assert golden.agreement(url, contract) > 0.5


def test_a_model_of_another_format_does_not(running: dict[str, ServerProcess], store: Path) -> None:
    contract = read_contract(store / "digits" / "1")

    with pytest.raises(WrongAnswer, match="expected status 200, got 400"):
        golden.check(running["iris"].url, contract)


def test_nobody_there_is_no_right_answer(store: Path) -> None:
    with pytest.raises(WrongAnswer, match="no answer to golden rows"):
        golden.check("http://127.0.0.1:1", read_contract(store / "iris" / "1"))


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_model_agrees_with_itself(
    running: dict[str, ServerProcess], store: Path, dataset: str
) -> None:
    """With labels and without."""
    contract = read_contract(store / dataset / "1")

    assert golden.agreement(running[dataset].url, contract) == 1


def test_labels_that_were_shuffled_do_not_agree(server: Start, store: Path) -> None:
    """What a wrong join of data and labels makes of a model."""
    contract = read_contract(store / "iris" / "1")
    (name, rows), *_ = contract.golden.outputs.items()
    shuffled = {name: [[*row[1:], row[0]] for row in rows]}
    other = contract.golden.model_copy(update={"outputs": shuffled})
    url = server(store / "iris" / "1").wait_until_ready().url

    assert golden.agreement(url, contract.model_copy(update={"golden": other})) == 0
