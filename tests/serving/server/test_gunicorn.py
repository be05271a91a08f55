"""The server process: it starts only with a valid model, and stops without losing a request."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from artifact.contract import Contract, read_contract
from artifact.verify import sha256_of
from tests.artifacts import cut_model, flipped_byte, put_model, rewrite
from tests.servers import ROWS, Start, connect, source, wait_until, wait_until_read, workers

BODY = json.dumps({"data": ROWS}).encode()
HEAD = b"POST /predict HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % len(BODY)


def read_one_response(connection: socket.socket) -> None:
    """Read the response to a prediction; head and body may arrive separately."""
    response = b""
    while not response.endswith(b"]]}"):
        response += connection.recv(65536)


def read_to_the_end(connection: socket.socket) -> bytes:
    """Read everything until the server closes the connection."""
    pieces = []
    while piece := connection.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def another_input_name(artifact: Path) -> None:
    contract = read_contract(artifact)
    tensor = contract.inputs[0].model_copy(update={"name": "x"})
    golden = contract.golden.model_copy(
        update={"inputs": {"x": contract.golden.inputs[contract.inputs[0].name]}}
    )
    rewrite(artifact, inputs=(tensor,), golden=golden)


def another_dtype(artifact: Path) -> None:
    tensor = read_contract(artifact).inputs[0]
    rewrite(artifact, inputs=(tensor.model_copy(update={"dtype": "float64"}),))


def another_shape(artifact: Path) -> None:
    tensor = read_contract(artifact).outputs[0]
    rewrite(artifact, outputs=(tensor.model_copy(update={"shape": (None, 3)}),))


def wrong_golden_row(artifact: Path) -> None:
    contract = read_contract(artifact)
    name = contract.outputs[0].name
    rows = np.array(contract.golden.outputs[name])
    rows[1, 2] += 0.5
    golden = contract.golden.model_copy(update={"outputs": {name: rows.tolist()}})
    rewrite(artifact, golden=golden)


def newer_opset(artifact: Path) -> None:
    identity = helper.make_node("Identity", ["input"], ["probabilities"])
    input_info, output_info = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4])
        for name in ("input", "probabilities")
    )
    graph = helper.make_graph([identity], "new", [input_info], [output_info])
    opsets = [helper.make_opsetid("", 99)]
    put_model(artifact, helper.make_model(graph, opset_imports=opsets, ir_version=10))
    file = read_contract(artifact).model
    rewrite(artifact, model=file.model_copy(update={"opsets": {"": 99}}))


def newer_ir(artifact: Path) -> None:
    model = onnx.load(artifact / "model.onnx")
    model.ir_version = 99
    put_model(artifact, model)
    file = read_contract(artifact).model
    rewrite(artifact, model=file.model_copy(update={"ir_version": 99}))


DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "a flipped byte": (flipped_byte, ["model.onnx: sha256 expected", "got"]),
    "a cut file": (cut_model, ["model.onnx: expected", "bytes, got", "sha256 expected"]),
    "no model": (lambda path: (path / "model.onnx").unlink(), ["model.onnx: missing"]),
    "no contract": (lambda path: (path / "contract.json").unlink(), ["contract.json"]),
    "no directory": (shutil.rmtree, ["expected a directory"]),
    "not a contract": (
        lambda path: (path / "contract.json").write_text('{"format": 1}'),
        ["contract.json: name: Field required", "contract.json: golden: Field required"],
    ),
    "another format": (
        lambda path: (path / "contract.json").write_text('{"format": 9}'),
        ["contract.json: format expected 1 or 2, got 9"],
    ),
    "another input": (
        another_input_name,
        ['input "x": expected float32[N,4], the model has none', 'input "input": not in the'],
    ),
    "another dtype": (another_dtype, ['input "input": expected float64[N,4], got float32[N,4]']),
    "another shape": (another_shape, ["expected float32[?,3], got float32[N,3]"]),
    "a wrong golden row": (wrong_golden_row, ["golden rows: output", "[1,2] expected", "1 of"]),
    "a newer opset": (newer_opset, ["model.onnx: opset ai.onnx 99, onnxruntime", "loads up to"]),
    "a newer IR": (newer_ir, ["model.onnx: IR version 99, onnxruntime", "loads up to"]),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_an_invalid_artifact_stops_the_start_with_one_message(
    server: Start, artifact: Path, case: str
) -> None:
    """An operator reads the reason once, without a traceback, also with two workers."""
    damage, expected = DAMAGE[case]
    damage(artifact)

    stopped = server(artifact, WORKERS="2")

    assert stopped.wait() != 0
    log = "".join(stopped.logged)
    assert [part for part in expected if part not in log] == []
    assert log.count("does not start. ContractMismatch") == 1
    assert len(stopped.events("stopped")) <= 1
    assert "Traceback" not in log


def test_all_mismatches_are_in_one_message(server: Start, artifact: Path) -> None:
    """File, tensor, and golden row at once: nobody wants one start for each of them."""
    flipped = onnx.load(artifact / "model.onnx")
    flipped.doc_string = "other bytes, same predictions"
    (artifact / "model.onnx").write_bytes(flipped.SerializeToString())
    another_shape(artifact)
    wrong_golden_row(artifact)

    stopped = server(artifact, CONTRACT_SHA256="0" * 64)

    assert stopped.wait() != 0
    log = "".join(stopped.logged)
    for part in ("contract.json: sha256", "bytes, got", "model.onnx: sha256", "float32[?,3]"):
        assert part in log
    assert "[1,2] expected" in log


def test_a_server_starts_only_with_the_pinned_contract(server: Start, artifact: Path) -> None:
    """A release is {image, contract}: labels and golden rows are pinned with it."""
    actual = sha256_of(artifact / "contract.json")

    assert server(artifact, CONTRACT_SHA256=actual).wait_until_ready()
    stopped = server(artifact, CONTRACT_SHA256=actual[::-1])
    assert stopped.wait() != 0
    assert f"contract.json: sha256 expected {actual[::-1]}, got {actual}" in "".join(stopped.logged)


def test_all_invalid_settings_are_named_at_once(server: Start) -> None:
    stopped = server(
        "", PORT="http", WORKERS="0", LOG_LEVEL="loud", DRAIN_SECONDS="soon", CONTRACT_SHA256="1"
    )

    assert stopped.wait() == 1
    log = "".join(stopped.logged)
    assert "Traceback" not in log
    for name in ("PORT", "WORKERS", "LOG_LEVEL", "DRAIN_SECONDS", "CONTRACT_SHA256"):
        assert f"- {name}: " in log
    assert "got 'http'" in log


def test_a_missing_model_setting_is_named(mode: str) -> None:
    """Neither mode falls back to another model."""
    (setting,) = source(mode, "")
    clean = {"PATH": os.environ["PATH"]}

    result = subprocess.run(
        [sys.executable, "-m", mode], env=clean, capture_output=True, text=True, check=False
    )

    assert result.returncode == 1
    assert re.search(f"- {setting}( or MODEL_DIR)?: expected .*to be set", result.stderr)


def test_a_taken_port_is_named(server: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        stopped = server(PORT=str(port))

        assert stopped.wait() == 1
        assert f"PORT: cannot listen on 127.0.0.1:{port}" in "".join(stopped.logged)


@pytest.mark.parametrize("sent_before", [7, len(HEAD) - 2, len(HEAD), len(HEAD) + 9])
def test_term_answers_a_request_that_was_partly_received(server: Start, sent_before: int) -> None:
    """Half a head or half a body: the request is completed, then the connection closes."""
    running = server().wait_until_ready()
    request = HEAD + BODY
    with connect(running.url) as connection, connect(running.url) as idle:
        # A complete request first, so that the connection is accepted; then half of another one.
        connection.sendall(request)
        read_one_response(connection)
        connection.sendall(request[:sent_before])
        wait_until_read(connection)

        running.process.send_signal(signal.SIGTERM)
        assert idle.recv(1) == b""  # Closed: the drain has begun.
        connection.sendall(request[sent_before:])
        response = read_to_the_end(connection)

    assert response.startswith(b"HTTP/1.1 200 OK")
    assert b"connection: close" in response
    assert response.count(b'{"prediction":') == 1
    assert running.wait() == 0


def test_term_stops_within_drain_seconds_if_a_client_never_finishes(server: Start) -> None:
    """A slow client must not keep a pod from stopping."""
    running = server(DRAIN_SECONDS="2").wait_until_ready()
    with connect(running.url) as never_finished:
        never_finished.sendall(HEAD)
        wait_until_read(never_finished)
        started = time.monotonic()

        assert running.stop() == 0

    assert time.monotonic() - started < 2


def test_term_answers_every_request_in_flight_in_every_worker(server: Start) -> None:
    """A rolling update must not lose a request."""
    running = server(WORKERS="2").wait_until_ready()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(running.url)) for _ in range(32)]
        for client in clients:
            client.sendall((HEAD + BODY)[:-1])
        for client in clients:
            wait_until_read(client)

        running.process.send_signal(signal.SIGTERM)
        for client in clients:
            client.sendall(BODY[-1:])
        responses = [read_to_the_end(client) for client in clients]

    assert [each for each in responses if not each.startswith(b"HTTP/1.1 200 OK")] == []
    assert all(each.endswith(b"]]}") for each in responses)
    assert running.wait() == 0


@pytest.mark.parametrize("moment", ["at once", "while it imports", "while the model is opened"])
def test_term_during_the_start_stops_at_once(
    server: Start, store: Path, moment: str, artifact: Path
) -> None:
    """The kernel ignores TERM for PID 1 without a handler, and a pod would hang while it stops."""
    if moment == "while the model is opened":
        put_slow_model(artifact)
        starting = server(artifact)
        wait_for_event(starting.logged, "listening")
    else:
        starting = server(store / "iris" / "1")
        if moment == "while it imports":
            wait_for_mapped_file(starting.process.pid, "onnxruntime")
    started = time.monotonic()

    starting.process.send_signal(signal.SIGTERM)
    starting.wait()

    assert time.monotonic() - started < 2
    assert not starting.events("model_loaded")


def wait_for_event(logged: list[str], event: str) -> None:
    """Wait until a server has logged an event."""
    deadline = time.monotonic() + 30
    while not any(f'"event": "{event}"' in line for line in logged):
        assert time.monotonic() < deadline, logged


def wait_for_mapped_file(pid: int, part: str) -> None:
    """Wait until a process has mapped a library: it is in the middle of its imports."""
    deadline = time.monotonic() + 30
    while part not in Path(f"/proc/{pid}/maps").read_text():
        assert time.monotonic() < deadline


def put_slow_model(artifact: Path) -> None:
    """Make the golden rows take many seconds: a loop of a fixed, long count."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["condition_in"], ["condition_out"]),
            helper.make_node("Identity", ["x_in"], ["x_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x_in", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("condition_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x_out", TensorProto.FLOAT, None),
        ],
    )
    contract: Contract = read_contract(artifact)
    (model_input,), (model_output,) = contract.inputs, contract.outputs
    loop = helper.make_node("Loop", ["times", "true", model_input.name], ["looped"], body=body)
    columns = helper.make_node("Slice", ["looped", "zero", "three", "one"], [model_output.name])
    graph = helper.make_graph(
        [loop, columns],
        "slow",
        [helper.make_tensor_value_info(model_input.name, TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info(model_output.name, TensorProto.FLOAT, ["N", 3])],
        [
            onnx.numpy_helper.from_array(np.array(10_000_000), "times"),
            onnx.numpy_helper.from_array(np.array(1), "true_number"),
            onnx.numpy_helper.from_array(np.array(True), "true"),  # noqa: FBT003
            onnx.numpy_helper.from_array(np.array([0]), "zero"),
            onnx.numpy_helper.from_array(np.array([3]), "three"),
            onnx.numpy_helper.from_array(np.array([1]), "one"),
        ],
    )
    opsets = [helper.make_opsetid("", 21)]
    put_model(artifact, helper.make_model(graph, opset_imports=opsets, ir_version=10))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_int_and_quit_drain_like_term(server: Start, number: signal.Signals) -> None:
    """Supervisors send them. Without a handler gunicorn kills the requests after 20 s."""
    running = server().wait_until_ready()
    with connect(running.url) as client:
        client.sendall((HEAD + BODY)[:-1])
        wait_until_read(client)
        started = time.monotonic()

        running.process.send_signal(number)
        client.sendall(BODY[-1:])

        assert read_to_the_end(client).startswith(b"HTTP/1.1 200 OK")
    assert running.wait() == 0
    assert time.monotonic() - started < 10


def test_a_pooled_connection_gets_a_last_response_at_term(server: Start) -> None:
    """A client that reuses its connection gets `Connection: close`, not a reset."""
    running = server().wait_until_ready()
    with connect(running.url) as pooled, connect(running.url) as idle:
        pooled.sendall(HEAD + BODY)
        read_one_response(pooled)
        # A second request stays incomplete, so the drain lasts until it is completed.
        idle.sendall((HEAD + BODY)[:-1])
        wait_until_read(idle)

        running.process.send_signal(signal.SIGTERM)
        pooled.sendall(HEAD + BODY)
        response = read_to_the_end(pooled)
        idle.sendall(BODY[-1:])

    assert response.startswith(b"HTTP/1.1 200 OK")
    assert running.wait() == 0


def test_workers_stop_when_their_master_is_killed(server: Start) -> None:
    """They would keep the port, and an old model, for ever."""
    running = server().wait_until_ready()

    running.process.kill()

    def is_stopped() -> bool:
        try:
            httpx.get(f"{running.url}/health", timeout=5)
        except httpx.TransportError:
            return True
        return False

    wait_until(is_stopped)


def test_a_killed_worker_is_replaced(server: Start) -> None:
    running = server().wait_until_ready()
    pid = httpx.get(f"{running.url}/inventory").json()["pid"]

    os.kill(pid, signal.SIGKILL)

    after = httpx.get(f"{running.url}/inventory", timeout=20).json()
    assert after["pid"] != pid
    assert httpx.post(f"{running.url}/predict", content=BODY).status_code == 200


def test_a_new_worker_that_cannot_open_the_model_does_not_stop_healthy_workers(
    server: Start, artifact: Path
) -> None:
    """gunicorn would stop all workers after a failed start; the new worker retries instead."""
    running = server(artifact, WORKERS="2").wait_until_ready()

    wait_until(lambda: len(workers(running.url)) == 2)
    killed, healthy = workers(running.url)
    (artifact / "model.onnx").rename(artifact / "away")

    os.kill(killed, signal.SIGKILL)

    wait_until(lambda: bool(running.events("model_not_opened")))
    assert "model.onnx: missing" in running.events("model_not_opened")[0]["reason"]
    assert workers(running.url) == {healthy}
    assert httpx.post(f"{running.url}/predict", content=BODY).status_code == 200
    (artifact / "away").rename(artifact / "model.onnx")
    wait_until(lambda: len(workers(running.url) - {killed, healthy}) == 1)


def test_the_management_port_alone_has_metrics_and_inventory(server: Start) -> None:
    """The versions of all libraries are not for clients of the prediction port."""
    running = server(MANAGEMENT_PORT="0").wait_until_ready()
    assert running.management_url is not None

    for path in ("/metrics", "/inventory"):
        assert httpx.get(running.management_url + path).status_code == 200
        assert httpx.get(running.url + path).status_code == 404
    for path in ("/health", "/v2/health/live", "/v2/health/ready"):
        assert httpx.get(running.management_url + path).status_code == 200
        assert httpx.get(running.url + path).status_code == 200
    rejected = httpx.post(f"{running.management_url}/predict", content=BODY)
    assert rejected.json() == {"error": "/predict: no such path"}
    assert httpx.get(running.management_url).status_code == 404
    assert httpx.get(running.url).status_code == 200


def test_the_same_port_for_predictions_and_management_is_rejected(server: Start) -> None:
    stopped = server(PORT="8123", MANAGEMENT_PORT="8123")

    assert stopped.wait() == 1
    assert "MANAGEMENT_PORT: expected another port than PORT, got 8123" in "".join(stopped.logged)


def test_the_server_writes_no_files(server: Start, tmp_path: Path) -> None:
    """The root file system is read-only in a cluster, and onnxruntime must send no telemetry."""
    temporary = tmp_path / "temporary"
    (tmp_path / "home").mkdir()
    temporary.mkdir()
    settings = {"HOME": str(tmp_path / "home"), "TMPDIR": str(temporary), "WORKERS": "2"}
    running = server(**settings).wait_until_ready()
    httpx.post(f"{running.url}/predict", content=BODY)

    assert running.stop() == 0

    assert list((tmp_path / "home").iterdir()) == []
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("count", ["1", "2"])
def test_after_usr1_the_server_closes_each_connection_and_keeps_serving(
    server: Start, count: str
) -> None:
    """A pod that will stop still gets requests; clients must not pool its connections."""
    running = server(WORKERS=count).wait_until_ready()
    wait_until(lambda: len(workers(running.url)) == int(count))
    with contextlib.ExitStack() as stack:
        # So many that each worker gets some of them.
        pooled = [stack.enter_context(connect(running.url)) for _ in range(8 * int(count))]
        for connection in pooled:
            connection.sendall(HEAD + BODY)
            read_one_response(connection)

        running.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: each_worker_closes(running.url, int(count)))
        for connection in pooled:
            connection.sendall(HEAD + BODY)
        responses = [read_to_the_end(connection) for connection in pooled]

    for response in responses:
        assert response.startswith(b"HTTP/1.1 200 OK\r\n")
        assert response.count(b"connection: close\r\n") == 1
        assert response.count(b'{"prediction":') == 1
        assert response.endswith(b"]]}")
    # uvicorn creates its default headers again each second, `date` among them. The header that
    # the server added must be in each of them.
    dates: dict[int, set[str]] = {}

    def each_worker_created_them_twice() -> bool:
        for pid, date, closes in new_connections(running.url, 5):
            assert closes == "close"
            dates.setdefault(pid, set()).add(date)
        return [len(seen) >= 3 for seen in dates.values()] == [True] * int(count)

    wait_until(each_worker_created_them_twice)
    assert running.stop() == 0


def each_worker_closes(url: str, count: int) -> bool:
    workers_seen = {(pid, closes) for pid, _, closes in new_connections(url, 10 * count)}
    return len(workers_seen) == count and {closes for _, closes in workers_seen} == {"close"}


def new_connections(url: str, number: int) -> list[tuple[int, str, str | None]]:
    """The pid of the worker, the date, and the `Connection` header of each response."""
    none_kept = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=url, limits=none_kept, timeout=20) as client:
        responses = [client.get("/inventory") for _ in range(number)]
    return [
        (response.json()["pid"], response.headers["date"], response.headers.get("connection"))
        for response in responses
    ]
