"""The process: it starts with a right model only, and ends without losing a request."""

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


def read_one_answer(connection: socket.socket) -> None:
    """An answer of a prediction; its head and its body may come one by one."""
    answer = b""
    while not answer.endswith(b"]]}"):
        answer += connection.recv(65536)


def read_to_the_end(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
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
    given, made = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4])
        for name in ("input", "probabilities")
    )
    graph = helper.make_graph([identity], "new", [given], [made])
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
def test_a_wrong_artifact_stops_the_start_with_one_message(
    server: Start, artifact: Path, case: str
) -> None:
    """Status, text and no traceback: an operator reads why, once, with two workers too."""
    damage, said = DAMAGE[case]
    damage(artifact)

    stopped = server(artifact, WORKERS="2")

    assert stopped.wait() != 0
    log = "".join(stopped.logged)
    assert [part for part in said if part not in log] == []
    assert log.count("does not start. ContractMismatch") == 1
    assert len(stopped.events("stopped")) <= 1
    assert "Traceback" not in log


def test_all_mismatches_are_in_one_message(server: Start, artifact: Path) -> None:
    """File, tensor and golden row at once: nobody mends them one start at a time."""
    flipped = onnx.load(artifact / "model.onnx")
    flipped.doc_string = "other bytes, same answers"
    (artifact / "model.onnx").write_bytes(flipped.SerializeToString())
    another_shape(artifact)
    wrong_golden_row(artifact)

    stopped = server(artifact, CONTRACT_SHA256="0" * 64)

    assert stopped.wait() != 0
    log = "".join(stopped.logged)
    for part in ("contract.json: sha256", "bytes, got", "model.onnx: sha256", "float32[?,3]"):
        assert part in log
    assert "[1,2] expected" in log


def test_the_contract_may_be_pinned(server: Start, artifact: Path) -> None:
    """A release is {image, contract}: labels and golden rows are pinned with it."""
    right = sha256_of(artifact / "contract.json")

    assert server(artifact, CONTRACT_SHA256=right).wait_until_ready()
    stopped = server(artifact, CONTRACT_SHA256=right[::-1])
    assert stopped.wait() != 0
    assert f"contract.json: sha256 expected {right[::-1]}, got {right}" in "".join(stopped.logged)


def test_every_wrong_setting_is_named_at_once(server: Start) -> None:
    stopped = server(
        "", PORT="http", WORKERS="0", LOG_LEVEL="loud", DRAIN_SECONDS="soon", CONTRACT_SHA256="1"
    )

    assert stopped.wait() == 1
    log = "".join(stopped.logged)
    assert "Traceback" not in log
    for name in ("PORT", "WORKERS", "LOG_LEVEL", "DRAIN_SECONDS", "CONTRACT_SHA256"):
        assert f"- {name}: " in log
    assert "got 'http'" in log


def test_a_missing_source_is_named(mode: str) -> None:
    """Neither mode falls back to some other model, ever."""
    (setting,) = source(mode, "")
    clean = {"PATH": os.environ["PATH"]}

    ended = subprocess.run(
        [sys.executable, "-m", mode], env=clean, capture_output=True, text=True, check=False
    )

    assert ended.returncode == 1
    assert re.search(f"- {setting}( or MODEL_DIR)?: expected .*to be set", ended.stderr)


def test_a_taken_port_is_named(server: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        stopped = server(PORT=str(port))

        assert stopped.wait() == 1
        assert f"PORT: cannot listen on 127.0.0.1:{port}" in "".join(stopped.logged)


@pytest.mark.parametrize("sent_before", [7, len(HEAD) - 2, len(HEAD), len(HEAD) + 9])
def test_term_answers_a_request_it_began_to_read(server: Start, sent_before: int) -> None:
    """Half a head, half a body: what was begun is answered, then the connection closes."""
    running = server().wait_until_ready()
    request = HEAD + BODY
    with connect(running.url) as connection, connect(running.url) as idle:
        # Answered once, so that it is known to be accepted; then half of the next.
        connection.sendall(request)
        read_one_answer(connection)
        connection.sendall(request[:sent_before])
        wait_until_read(connection)

        running.process.send_signal(signal.SIGTERM)
        assert idle.recv(1) == b""  # closed: the drain is under way
        connection.sendall(request[sent_before:])
        answer = read_to_the_end(connection)

    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"connection: close" in answer
    assert answer.count(b'{"prediction":') == 1
    assert running.wait() == 0


def test_term_ends_within_drain_seconds_however_slow_a_client_is(server: Start) -> None:
    """A client that never finishes must not keep a pod from ending."""
    running = server(DRAIN_SECONDS="2").wait_until_ready()
    with connect(running.url) as never_finished:
        never_finished.sendall(HEAD)
        wait_until_read(never_finished)
        started = time.monotonic()

        assert running.stop() == 0

    assert time.monotonic() - started < 2


def test_term_answers_every_request_in_flight_in_every_worker(server: Start) -> None:
    """A rolling update must not cost one request."""
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
        answers = [read_to_the_end(client) for client in clients]

    assert [answer for answer in answers if not answer.startswith(b"HTTP/1.1 200 OK")] == []
    assert all(answer.endswith(b"]]}") for answer in answers)
    assert running.wait() == 0


@pytest.mark.parametrize("moment", ["at once", "while it imports", "while the model is opened"])
def test_term_before_the_server_is_up_ends_at_once(
    server: Start, store: Path, moment: str, artifact: Path
) -> None:
    """PID 1 has no default for TERM, so a start that cannot be stopped is a pod that hangs."""
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
    """Wait until a process has mapped a library: it is that far in its imports."""
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
    (given,), (made,) = contract.inputs, contract.outputs
    loop = helper.make_node("Loop", ["times", "true", given.name], ["looped"], body=body)
    columns = helper.make_node("Slice", ["looped", "zero", "three", "one"], [made.name])
    graph = helper.make_graph(
        [loop, columns],
        "slow",
        [helper.make_tensor_value_info(given.name, TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info(made.name, TensorProto.FLOAT, ["N", 3])],
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
def test_int_drains_as_term_does(server: Start, number: signal.Signals) -> None:
    """Supervisors send either; waiting for gunicorn's kill would cost 20 s and the requests."""
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


def test_a_pooled_connection_gets_a_last_answer_at_term(server: Start) -> None:
    """A client that reuses its connection is told to go elsewhere, not reset."""
    running = server().wait_until_ready()
    with connect(running.url) as pooled, connect(running.url) as idle:
        pooled.sendall(HEAD + BODY)
        read_one_answer(pooled)
        # One more that stays open, so that it is known when the drain has begun.
        idle.sendall((HEAD + BODY)[:-1])
        wait_until_read(idle)

        running.process.send_signal(signal.SIGTERM)
        pooled.sendall(HEAD + BODY)
        answer = read_to_the_end(pooled)
        idle.sendall(BODY[-1:])

    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert running.wait() == 0


def test_workers_end_with_a_master_that_was_killed(server: Start) -> None:
    """They would keep the port, and an old model, for ever."""
    running = server().wait_until_ready()

    running.process.kill()

    def refuses() -> bool:
        try:
            httpx.get(f"{running.url}/health", timeout=5)
        except httpx.TransportError:
            return True
        return False

    wait_until(refuses)


def test_a_killed_worker_is_replaced(server: Start) -> None:
    running = server().wait_until_ready()
    pid = httpx.get(f"{running.url}/inventory").json()["pid"]

    os.kill(pid, signal.SIGKILL)

    after = httpx.get(f"{running.url}/inventory", timeout=20).json()
    assert after["pid"] != pid
    assert httpx.post(f"{running.url}/predict", content=BODY).status_code == 200


def test_a_replacement_that_cannot_open_the_model_ends_no_healthy_worker(
    server: Start, artifact: Path
) -> None:
    """gunicorn takes a failed start for a reason to stop everything; it tries again instead."""
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
    """A list of every library's version is not for the predict port."""
    running = server(MANAGEMENT_PORT="0").wait_until_ready()
    assert running.management_url is not None

    for path in ("/metrics", "/inventory"):
        assert httpx.get(running.management_url + path).status_code == 200
        assert httpx.get(running.url + path).status_code == 404
    for path in ("/health", "/v2/health/live", "/v2/health/ready"):
        assert httpx.get(running.management_url + path).status_code == 200
        assert httpx.get(running.url + path).status_code == 200
    refused = httpx.post(f"{running.management_url}/predict", content=BODY)
    assert refused.json() == {"error": "/predict: no such path"}
    assert httpx.get(running.management_url).status_code == 404
    assert httpx.get(running.url).status_code == 200


def test_one_port_for_two_things_is_refused(server: Start) -> None:
    stopped = server(PORT="8123", MANAGEMENT_PORT="8123")

    assert stopped.wait() == 1
    assert "MANAGEMENT_PORT: expected another port than PORT, got 8123" in "".join(stopped.logged)


def test_nothing_is_written_but_to_memory(server: Start, tmp_path: Path) -> None:
    """The root file system is read-only in a cluster, and onnxruntime must not report home."""
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
def test_usr1_sends_clients_elsewhere_and_answers_on(server: Start, count: str) -> None:
    """A pod that is about to end still gets traffic; clients must not pool its connections."""
    running = server(WORKERS=count).wait_until_ready()
    wait_until(lambda: len(workers(running.url)) == int(count))
    with contextlib.ExitStack() as stack:
        # So many that each worker has some.
        pooled = [stack.enter_context(connect(running.url)) for _ in range(8 * int(count))]
        for one in pooled:
            one.sendall(HEAD + BODY)
            read_one_answer(one)

        running.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: each_worker_closes(running.url, int(count)))
        for one in pooled:
            one.sendall(HEAD + BODY)
        answers = [read_to_the_end(one) for one in pooled]

    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.count(b"connection: close\r\n") == 1
        assert answer.count(b'{"prediction":') == 1
        assert answer.endswith(b"]]}")
    # uvicorn makes its default headers anew each second, and the date is one of them.
    dates: dict[int, set[str]] = {}

    def each_worker_made_them_twice() -> bool:
        for pid, date, closes in new_connections(running.url, 5):
            assert closes == "close"
            dates.setdefault(pid, set()).add(date)
        return [len(seen) >= 3 for seen in dates.values()] == [True] * int(count)

    wait_until(each_worker_made_them_twice)
    assert running.stop() == 0


def each_worker_closes(url: str, count: int) -> bool:
    told = {(pid, closes) for pid, _, closes in new_connections(url, 10 * count)}
    return len(told) == count and {closes for _, closes in told} == {"close"}


def new_connections(url: str, number: int) -> list[tuple[int, str, str | None]]:
    """Of each: which worker accepted it, the date of its answer, what becomes of it."""
    none_kept = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=url, limits=none_kept, timeout=20) as client:
        answers = [client.get("/inventory") for _ in range(number)]
    return [
        (answer.json()["pid"], answer.headers["date"], answer.headers.get("connection"))
        for answer in answers
    ]
