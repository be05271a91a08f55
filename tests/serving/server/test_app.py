"""The application in this process: several of them, none with anything global."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import onnx
import pytest
from onnx import TensorProto, helper
from starlette.routing import Route
from starlette.types import ASGIApp

from artifact.contract import ContractMismatch, read_contract
from model_in_image.source import ModelInImageSettings
from serving.api import routes
from serving.inference.batcher import Batcher
from serving.inference.model import Model
from serving.logs import JsonFormatter
from serving.metrics.counters import Counters
from serving.metrics.metrics import Metrics
from serving.server.app import FASTAPI_PATHS, App, create_app
from serving.workers.model_source import ServedVersion
from tests.servers import ROWS, Start
from training.import_onnx import make_contract


def app_of(artifact: Path) -> App:
    """An application on its own settings, opening nothing yet."""
    return create_app(ModelInImageSettings(model_dir=artifact), artifact)


@asynccontextmanager
async def client_of(app: App) -> AsyncIterator[httpx.AsyncClient]:
    """A client that calls an application without a network."""
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def test_two_applications_in_one_process_share_nothing(store: Path) -> None:
    async def ask() -> tuple[httpx.Response, httpx.Response]:
        iris, diabetes = app_of(store / "iris" / "1"), app_of(store / "diabetes" / "1")
        async with (
            iris.running(),
            diabetes.running(),
            client_of(iris) as first,
            client_of(diabetes) as second,
        ):
            body = {"data": ROWS}
            return await first.post("/predict", json=body), await second.post("/predict", json=body)

    accepted, refused = asyncio.run(ask())

    assert accepted.status_code == 200
    assert refused.json()["error"].startswith("data[0]: expected a list of 10 numbers")


def test_an_application_is_not_ready_before_its_model_is(store: Path) -> None:
    """Ready means that the golden rows came out right; nothing is answered for a default."""

    async def ask() -> list[httpx.Response]:
        async with client_of(app_of(store / "iris" / "1")) as client:
            return [
                await client.get("/v2/health/ready"),
                await client.post("/predict", json={"data": ROWS}),
                await client.get("/metadata"),
                await client.get("/v2/health/live"),
            ]

    ready, prediction, metadata, live = asyncio.run(ask())

    assert (ready.status_code, ready.json()) == (503, {"ready": False})
    assert prediction.status_code == metadata.status_code == 503
    assert prediction.json() == {"error": "the model is not loaded yet"}
    assert live.status_code == 200


def test_a_worker_opens_what_is_current_by_its_own_contract(store: Path, tmp_path: Path) -> None:
    """A worker that starts late must not call one version's model by the other's name."""
    second = tmp_path / "iris" / "2"
    shutil.copytree(store / "iris" / "1", second)
    contract = read_contract(second)
    (second / "contract.json").write_text(contract.model_copy(update={"version": "2"}).to_json())
    app = app_of(store / "iris" / "1")
    app.served_version.set(ServedVersion("2", str(second)))

    async def ask() -> httpx.Response:
        async with app.running(), client_of(app) as client:
            return await client.post("/predict", json={"data": ROWS})

    assert asyncio.run(ask()).headers["model-version"] == "2"


def test_a_wrong_file_is_refused_before_anything_is_opened(artifact: Path) -> None:
    (artifact / "model.onnx").write_bytes(b"")

    with pytest.raises(ContractMismatch, match="sha256 expected"):
        app_of(artifact)


def test_importing_the_server_loads_no_model_no_training_and_no_client_of_buckets() -> None:
    """obstore hangs in workers that are forked from a process that has used it."""
    code = (
        "import sys, serving.server.gunicorn, model_in_image.source, model_load.source;"
        "print({'sklearn', 'skl2onnx', 'onnx', 'obstore', 'training'} & set(sys.modules))"
    )

    imported = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert imported.stdout.strip() == "set()"


@pytest.fixture
def gather(tmp_path: Path) -> Path:
    """A model that looks rows of a table up, and fails on an index that is not in it."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "index"], ["found"])],
        "gather",
        [helper.make_tensor_value_info("index", TensorProto.INT64, ["N", 1])],
        [helper.make_tensor_value_info("found", TensorProto.FLOAT, ["N", 1])],
        [helper.make_tensor("table", TensorProto.FLOAT, [3], [0.5, 1.5, 2.5])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "gather.onnx")
    return Path(
        make_contract(
            onnx_file=tmp_path / "gather.onnx",
            name="gather",
            version="1",
            store=tmp_path / "store",
            purpose="fail at run time",
        )
    )


def test_values_the_model_cannot_run_with_are_the_clients_mistake(
    server: Start, gather: Path
) -> None:
    """No contract can foresee an index that is out of a table; nothing of it is logged."""
    running = server(gather).wait_until_ready()

    refused = httpx.post(f"{running.url}/predict", json={"data": [[4711]]})
    answered = httpx.post(f"{running.url}/predict", json={"data": [[2]]})
    running.stop()

    assert refused.status_code == 400
    assert refused.json() == {"error": "the model cannot run with these values"}
    assert answered.json() == {"prediction": [[2.5]]}
    assert "4711" not in "".join(running.logged)


def test_a_fault_of_the_server_is_a_500_that_logs_no_input(
    gather: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Said in the one form of errors, and counted."""

    def fail(*_: object) -> None:
        raise MemoryError(str(4700 + 11))

    async def ask() -> list[httpx.Response]:
        app = app_of(gather)
        async with app.running(), client_of(app) as client:
            monkeypatch.setattr(Model, "run", fail)
            failed = await client.post("/predict", json={"data": [[4711]]})
            return [failed, await client.get("/metrics")]

    failed, metrics = asyncio.run(ask())

    assert (failed.status_code, failed.json()) == (500, {"error": "internal error"})
    assert 'http_requests_total{endpoint="/predict",status="5xx"} 1.0' in metrics.text
    (record,) = [record for record in caplog.records if record.msg == "request_failed"]
    assert "4711" not in JsonFormatter().format(record)


def test_a_log_is_one_json_object_a_line(server: Start) -> None:
    """No line of a library's own, from the first to the last."""
    running = server().wait_until_ready()
    httpx.post(f"{running.url}/predict", json={"data": ROWS})
    running.stop()

    events = [json.loads(line)["event"] for line in running.logged]

    assert events == ["listening", "model_loaded", "stopped"]


def test_a_start_waits_for_no_import_of_what_is_asked_now_and_then() -> None:
    """FastAPI took as long to import as all else together; the first request for it imports it."""
    code = "import sys, serving.server.gunicorn, model_in_image.source, model_load.source\n"
    code += "print({'fastapi', 'prometheus_client', 'obstore'} & set(sys.modules))"

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout == "set()\n"


def test_what_could_not_be_made_is_made_by_the_next_request(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little memory for a moment must not last."""
    app = app_of(store / "iris" / "1")
    make, failures = App._create_fastapi_app, [MemoryError()]  # noqa: SLF001 - it cannot fail otherwise

    def fail_once(self: App) -> ASGIApp:
        if failures:
            raise failures.pop()
        return make(self)

    monkeypatch.setattr(App, "_create_fastapi_app", fail_once)

    async def ask_twice() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with (
            app.running(),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            return [await client.get("/metadata"), await client.get("/metadata")]

    first, second = asyncio.run(ask_twice())

    assert first.json() == {"error": "internal error"}
    assert second.status_code == 200


def test_every_path_of_fastapi_is_counted_under_its_name() -> None:
    """What counts is there before FastAPI is."""
    batcher = Batcher(Metrics(Counters(1)), max_rows=1)
    routers = [
        routes.description(batcher), routes.open_inference(batcher), routes.documentation(),
        routes.page(),
    ]  # fmt: skip
    found = [route for router in routers for route in router.routes if isinstance(route, Route)]

    assert {"/openapi.json", *(route.path for route in found)} == set(FASTAPI_PATHS)
