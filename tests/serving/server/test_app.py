"""The ASGI application, run inside the test process."""

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
    """An application with its own settings, whose model is not open yet."""
    return create_app(ModelInImageSettings(model_dir=artifact), artifact)


@asynccontextmanager
async def client_of(app: App) -> AsyncIterator[httpx.AsyncClient]:
    """A client that calls an application without a network."""
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def test_two_applications_in_one_process_share_nothing(store: Path) -> None:
    async def send_both() -> tuple[httpx.Response, httpx.Response]:
        iris, diabetes = app_of(store / "iris" / "1"), app_of(store / "diabetes" / "1")
        async with (
            iris.running(),
            diabetes.running(),
            client_of(iris) as first,
            client_of(diabetes) as second,
        ):
            body = {"data": ROWS}
            return await first.post("/predict", json=body), await second.post("/predict", json=body)

    accepted, rejected = asyncio.run(send_both())

    assert accepted.status_code == 200
    assert rejected.json()["error"].startswith("data[0]: expected a list of 10 numbers")


def test_an_application_is_not_ready_before_its_model_is_open(store: Path) -> None:
    """Ready means that the golden rows were reproduced; until then there are no predictions."""

    async def send_all() -> list[httpx.Response]:
        async with client_of(app_of(store / "iris" / "1")) as client:
            return [
                await client.get("/v2/health/ready"),
                await client.post("/predict", json={"data": ROWS}),
                await client.get("/metadata"),
                await client.get("/v2/health/live"),
            ]

    ready, prediction, metadata, live = asyncio.run(send_all())

    assert (ready.status_code, ready.json()) == (503, {"ready": False})
    assert prediction.status_code == metadata.status_code == 503
    assert prediction.json() == {"error": "the model is not loaded yet"}
    assert live.status_code == 200


def test_a_worker_opens_the_served_version_with_the_contract_of_that_version(
    store: Path, tmp_path: Path
) -> None:
    """A worker that starts late must not report the first version for a later model."""
    second = tmp_path / "iris" / "2"
    shutil.copytree(store / "iris" / "1", second)
    contract = read_contract(second)
    (second / "contract.json").write_text(contract.model_copy(update={"version": "2"}).to_json())
    app = app_of(store / "iris" / "1")
    app.served_version.set(ServedVersion("2", str(second)))

    async def predict() -> httpx.Response:
        async with app.running(), client_of(app) as client:
            return await client.post("/predict", json={"data": ROWS})

    assert asyncio.run(predict()).headers["model-version"] == "2"


def test_a_wrong_file_is_rejected_before_the_model_is_opened(artifact: Path) -> None:
    (artifact / "model.onnx").write_bytes(b"")

    with pytest.raises(ContractMismatch, match="sha256 expected"):
        app_of(artifact)


def test_importing_the_server_imports_neither_training_nor_a_bucket_client() -> None:
    """obstore hangs in workers that are forked from a process that has used it; others are slow."""
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
    """A model that looks up rows of a table, and fails on an index outside of the table."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "index"], ["row"])],
        "gather",
        [helper.make_tensor_value_info("index", TensorProto.INT64, ["N", 1])],
        [helper.make_tensor_value_info("row", TensorProto.FLOAT, ["N", 1])],
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


def test_values_that_the_model_cannot_handle_return_400(server: Start, gather: Path) -> None:
    """No contract describes the size of a table. The value is not logged: it is an input."""
    running = server(gather).wait_until_ready()

    rejected = httpx.post(f"{running.url}/predict", json={"data": [[4711]]})
    accepted = httpx.post(f"{running.url}/predict", json={"data": [[2]]})
    running.stop()

    assert rejected.status_code == 400
    assert rejected.json() == {"error": "the model cannot run with these values"}
    assert accepted.json() == {"prediction": [[2.5]]}
    assert "4711" not in "".join(running.logged)


def test_an_error_of_the_server_returns_500_and_logs_no_input(
    gather: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The body has the form of all errors, and the request is counted."""

    def fail(*_: object) -> None:
        raise MemoryError(str(4700 + 11))

    async def send_both() -> list[httpx.Response]:
        app = app_of(gather)
        async with app.running(), client_of(app) as client:
            monkeypatch.setattr(Model, "run", fail)
            failed = await client.post("/predict", json={"data": [[4711]]})
            return [failed, await client.get("/metrics")]

    failed, metrics = asyncio.run(send_both())

    assert (failed.status_code, failed.json()) == (500, {"error": "internal error"})
    assert 'http_requests_total{endpoint="/predict",status="5xx"} 1.0' in metrics.text
    (record,) = [record for record in caplog.records if record.msg == "request_failed"]
    assert "4711" not in JsonFormatter().format(record)


def test_a_log_has_one_json_object_per_line(server: Start) -> None:
    """No library writes lines in its own format, from the start to the end."""
    running = server().wait_until_ready()
    httpx.post(f"{running.url}/predict", json={"data": ROWS})
    running.stop()

    events = [json.loads(line)["event"] for line in running.logged]

    assert events == ["listening", "model_loaded", "stopped"]


def test_the_start_does_not_import_fastapi_or_the_metrics_library() -> None:
    """FastAPI takes as long as all other imports together, so the first request imports it."""
    code = "import sys, serving.server.gunicorn, model_in_image.source, model_load.source\n"
    code += "print({'fastapi', 'prometheus_client', 'obstore'} & set(sys.modules))"

    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert result.stdout == "set()\n"


def test_fastapi_is_imported_by_the_next_request_if_the_first_import_failed(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short lack of memory must not break these paths for ever."""
    app = app_of(store / "iris" / "1")
    create, failures = App._create_fastapi_app, [MemoryError()]  # noqa: SLF001 - it cannot fail otherwise

    def fail_once(self: App) -> ASGIApp:
        if failures:
            raise failures.pop()
        return create(self)

    monkeypatch.setattr(App, "_create_fastapi_app", fail_once)

    async def send_two() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with (
            app.running(),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            return [await client.get("/metadata"), await client.get("/metadata")]

    first, second = asyncio.run(send_two())

    assert first.json() == {"error": "internal error"}
    assert second.status_code == 200


def test_the_list_of_fastapi_paths_is_complete() -> None:
    """Counters are allocated before the fork, and FastAPI is imported after it."""
    batcher = Batcher(Metrics(Counters(1)), max_rows=1)
    routers = [
        routes.description(batcher), routes.open_inference(batcher), routes.documentation(),
        routes.page(),
    ]  # fmt: skip
    served = [route for router in routers for route in router.routes if isinstance(route, Route)]

    assert {"/openapi.json", *(route.path for route in served)} == set(FASTAPI_PATHS)
