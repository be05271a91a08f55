"""The scenarios of the benchmark: each starts its servers and yields measurements."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks import costs
from benchmarks.bench import CONNECTIONS, FEWER_CONNECTIONS, Bench
from benchmarks.goals import Measured
from benchmarks.interleave import interleave
from benchmarks.load import RequestSpec
from benchmarks.machine import ProcessTree
from benchmarks.systems import MODEL_LOAD, SYSTEMS, TENSORS, NotMeasured, System, of_tensors

_MEMORY_ROUNDS = 3
_MEMORY_SECONDS = 4
_WIDE = (32, 784)


Scenario = Callable[[Bench], Iterator[Measured]]


def predict(bench: Bench) -> Iterator[Measured]:
    """Measure /predict with one row, 64 connections, all systems."""
    yield from _of(bench, "predict", [SYSTEMS[name] for name in bench.systems], CONNECTIONS)


def infer(bench: Bench) -> Iterator[Measured]:
    """Measure one row as Open Inference Protocol JSON, 64 connections."""
    baseline = replace(SYSTEMS["uvicorn_baseline"], request=TENSORS)
    this = replace(SYSTEMS["this"], request=TENSORS, prediction=of_tensors)
    yield from _of(bench, "infer", [baseline, this], CONNECTIONS)


def latency(bench: Bench) -> Iterator[Measured]:
    """Measure /predict with one row, one connection."""
    systems = [
        SYSTEMS[name] for name in ("uvicorn_baseline", "this", "asgi_onnxruntime", "fastapi")
    ]
    yield from _of(bench, "latency", systems, 1)


def slow(bench: Bench) -> Iterator[Measured]:
    """Measure a model of about 3 ms per row, 64 connections, and health checks meanwhile."""
    request = RequestSpec("/predict", json.dumps({"data": [bench.samples["slow"]["row"]]}).encode())
    systems = [replace(SYSTEMS[name], request=request) for name in ("asgi_onnxruntime", "this")]
    yield from _of(bench, "slow", systems, CONNECTIONS, model="slow", polls_health=True)


def wide(bench: Bench) -> Iterator[Measured]:
    """Measure 32 rows of 784 numbers in the Open Inference Protocol, as JSON and as binary data."""
    requests = _wide_requests()
    with bench.server(SYSTEMS["this"], "wide") as server:
        server.wait_until_correct(requests["json"], lambda _: None)
        as_json, as_binary = (
            of_tensors(json.loads(server.send(request))) for request in requests.values()
        )
        if not np.allclose(as_json, as_binary, atol=1e-4):
            raise NotMeasured("JSON and binary data have different predictions")
        contenders = [
            bench.contender(server, name, request, connections=FEWER_CONNECTIONS)
            for name, request in requests.items()
        ]
        yield from interleave("wide", contenders, bench.rounds)


def start(bench: Bench) -> Iterator[Measured]:
    """Measure the time from exec to the first correct prediction."""
    systems = {
        "asgi_onnxruntime": SYSTEMS["asgi_onnxruntime"],
        "model_in_image": SYSTEMS["this"],
        "model_load": MODEL_LOAD,
    }
    for at in range(-1, bench.rounds):
        for name in random.sample(list(systems), len(systems)):
            with bench.server(systems[name]) as server:
                seconds = bench.wait_until_correct(server)
            if at >= 0:  # the first round fills the page cache
                yield Measured("start", name, at, {"start_seconds": seconds})


def memory(bench: Bench) -> Iterator[Measured]:
    """Measure the memory of all processes of a server after a few seconds of load."""
    selected = {
        "asgi_onnxruntime": ("asgi_onnxruntime", "1"),
        "one worker": ("this", "1"),
        "four workers": ("this", "4"),
    }
    for at in range(min(_MEMORY_ROUNDS, bench.rounds)):
        for name, (system, count) in selected.items():
            with bench.server(SYSTEMS[system], settings={"WORKERS": count}) as server:
                bench.wait_until_correct(server)
                # Longer than the work that a server does in the background after its start.
                longer = replace(bench, seconds=_MEMORY_SECONDS)
                longer.contender(server, name).measure("memory", at, polls_health=False)
                used = ProcessTree(server.process.pid).pss_bytes()
            yield Measured("memory", name, at, {"memory_bytes": used})


def workers(bench: Bench) -> Iterator[Measured]:
    """Measure one worker on one core and two workers on two cores."""
    if len(bench.cores.servers) < 2:
        raise NotMeasured("three cores are needed: two for the workers, one for the load")
    with ExitStack() as stack:
        contenders = []
        for count, name in enumerate(("one", "two"), 1):
            server = stack.enter_context(
                bench.server(
                    SYSTEMS["this"],
                    settings={"WORKERS": str(count)},
                    cores=bench.cores.servers[:count],
                )
            )
            bench.wait_until_correct(server)
            contenders.append(bench.contender(server, name))
        yield from interleave("workers", contenders, bench.rounds)


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        predict, infer, latency, slow, wide, start, memory, workers,
        costs.rows, costs.connections, costs.sizes,
    )
}  # fmt: skip


def _of(  # noqa: PLR0913 - the choices of a scenario
    bench: Bench,
    scenario: str,
    systems: Sequence[System],
    connections: int,
    *,
    model: str = "iris",
    polls_health: bool = False,
) -> Iterator[Measured]:
    """Measure the systems that start; yield the reason for each of the others."""
    with ExitStack() as stack:
        contenders = []
        for system in systems:
            try:
                system.install()
                server = stack.enter_context(bench.server(system, model))
                # uvicorn_baseline returns fixed bytes, whatever the model.
                if system.name != "uvicorn_baseline":
                    bench.wait_until_correct(server, model)
                else:
                    server.wait_until_correct(system.request, lambda _: None)
            except NotMeasured as reason:
                bench.report(f"{system.name}: {reason}")
                yield Measured(scenario, system.name, 0, {}, dropped=str(reason))
            else:
                contenders.append(bench.contender(server, system.name, connections=connections))
        yield from interleave(scenario, contenders, bench.rounds, polls_health=polls_health)


def _wide_requests() -> dict[str, RequestSpec]:
    rows = np.random.default_rng(0).random(_WIDE, dtype=np.float32)
    tensor: dict[str, Any] = {"name": "input", "shape": list(rows.shape), "datatype": "FP32"}
    path = "/v2/models/wide/infer"
    size = {"binary_data_size": rows.nbytes}
    head = json.dumps({"inputs": [{**tensor, "parameters": size}]}).encode()
    return {
        "json": RequestSpec(
            path, json.dumps({"inputs": [{**tensor, "data": rows.ravel().tolist()}]}).encode()
        ),
        "binary": RequestSpec(
            path,
            head + rows.tobytes(),
            "application/octet-stream",
            (("Inference-Header-Content-Length", str(len(head))),),
        ),
    }
