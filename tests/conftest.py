"""Fixtures for all tests: trained artifacts, and running servers of both modes."""

import csv
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from sklearn.datasets import load_iris

from release.images.docker import DockerError, docker
from release.local.server_process import ServerProcess
from tests.audit_services import audit_services
from tests.fakes import unavailable
from tests.own_models import make_own_models
from tests.servers import DATASETS, MODES, Start, all_served, start
from training.train import train


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests measured, also in the processes of pytest-xdist."""
    for report in terminalreporter.getreports("passed"):
        for key, value in report.user_properties:
            if key == "figure":
                terminalreporter.write_line(str(value))


@pytest.fixture(autouse=True, scope="session")
def _outside_of_make() -> None:
    """A `make` that a test starts must not inherit the options of `make test`."""
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        os.environ.pop(name, None)


@pytest.fixture(autouse=True, scope="session")
def _audit_on_loopback() -> Iterator[None]:
    """The audit and the inventory query local services that report no problems."""
    with audit_services() as services:
        os.environ.update(services.environment)
        yield


@pytest.fixture(scope="session")
def engine() -> None:
    """A running Docker engine; the test is skipped, or fails in CI, without it."""
    try:
        docker("info")
    except DockerError as error:
        unavailable(f"needs Docker: {error}")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with version 1 of every data set; read-only, because all tests share it."""
    path = tmp_path_factory.mktemp("store")
    for dataset in DATASETS:
        train(dataset=dataset, version="1", store=path)
    return path


@pytest.fixture
def artifact(store: Path, tmp_path: Path) -> Path:
    """A copy of the iris artifact that a test may damage."""
    return Path(shutil.copytree(store / "iris" / "1", tmp_path / "iris" / "1"))


@pytest.fixture(scope="session")
def two_csv_versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two versions of one model, trained on two different CSV files."""
    path = tmp_path_factory.mktemp("csv")
    flowers = load_iris()
    for version, half in (("1", slice(0, None, 2)), ("2", slice(1, None, 2))):
        file = path / f"flowers-{version}.csv"
        rows = zip(flowers.data[half], flowers.target_names[flowers.target[half]], strict=True)
        with file.open("w", newline="", encoding="utf-8") as csv_file:
            writer = csv.writer(csv_file)
            writer.writerow([*flowers.feature_names, "species"])
            writer.writerows([*row, label] for row, label in rows)
        train(data=file, target="species", name="flowers", version=version, store=path / "store")
    return path / "store"


@pytest.fixture(scope="session")
def own_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with version 1 of every artificial model; read-only, because it is shared."""
    return make_own_models(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="session", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """Each release mode in turn."""
    return str(request.param)


@pytest.fixture
def server(mode: str, store: Path) -> Iterator[Start]:
    """Start servers of a mode with other settings; all are stopped at the end of the test."""
    with ExitStack() as stack:

        def start_server(
            directory: Path | str = store / "iris" / "1", **settings: str
        ) -> ServerProcess:
            return stack.enter_context(start(mode, directory, **settings))

        yield start_server


@pytest.fixture(scope="session")
def running(mode: str, store: Path) -> Iterator[dict[str, ServerProcess]]:
    """A running server of a mode for each data set, shared by tests that only send requests."""
    with all_served(mode, {name: store / name / "1" for name in DATASETS}) as servers:
        yield servers


@pytest.fixture
def iris(running: dict[str, ServerProcess]) -> Iterator[httpx.Client]:
    """A client of a running iris server."""
    with httpx.Client(base_url=running["iris"].url, timeout=10) as client:
        yield client


@pytest.fixture
def client(running: dict[str, ServerProcess]) -> Iterator[Callable[[str], httpx.Client]]:
    """Clients of the running servers, by data set."""
    with ExitStack() as stack:

        def client_of(dataset: str) -> httpx.Client:
            return stack.enter_context(httpx.Client(base_url=running[dataset].url, timeout=10))

        yield client_of
