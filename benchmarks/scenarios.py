"""What is measured, scenario by scenario: each starts its servers and yields what it found."""

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
from benchmarks.interleave import take_turns
from benchmarks.load import Ask
from benchmarks.machine import ProcessTree
from benchmarks.systems import MODEL_LOAD, SYSTEMS, TENSORS, NotMeasured, System, of_tensors

_MEMORY_ROUNDS = 3
_MEMORY_SECONDS = 4
_WIDE = (32, 784)


Scenario = Callable[[Bench], Iterator[Measured]]


def predict(bench: Bench) -> Iterator[Measured]:
    """Yield /predict with one row, 64 connections, all systems."""
    yield from _of(bench, "predict", [SYSTEMS[name] for name in bench.systems], CONNECTIONS)


def infer(bench: Bench) -> Iterator[Measured]:
    """Yield one row in the Open Inference Protocol's JSON, 64 connections."""
    limit = replace(SYSTEMS["limit"], ask=TENSORS)
    this = replace(SYSTEMS["this"], ask=TENSORS, prediction=of_tensors)
    yield from _of(bench, "infer", [limit, this], CONNECTIONS)


def latency(bench: Bench) -> Iterator[Measured]:
    """Yield /predict with one row, one connection."""
    systems = [SYSTEMS[name] for name in ("limit", "this", "bare", "fastapi")]
    yield from _of(bench, "latency", systems, 1)


def slow(bench: Bench) -> Iterator[Measured]:
    """Yield a model of some 3 ms a row, 64 connections, and health asked meanwhile."""
    ask = Ask("/predict", json.dumps({"data": [bench.samples["slow"]["row"]]}).encode())
    systems = [replace(SYSTEMS[name], ask=ask) for name in ("bare", "this")]
    yield from _of(bench, "slow", systems, CONNECTIONS, model="slow", asks_health=True)


def wide(bench: Bench) -> Iterator[Measured]:
    """Yield 32 rows of 784 numbers in the Open Inference Protocol, as JSON and as binary data."""
    asks = _wide_asks()
    with bench.server(SYSTEMS["this"], "wide") as server:
        server.wait_until_right(asks["json"], lambda _: None)
        as_json, as_binary = (of_tensors(json.loads(server.answer(ask))) for ask in asks.values())
        if not np.allclose(as_json, as_binary, atol=1e-4):
            raise NotMeasured("JSON and binary data have different answers")
        contenders = [
            bench.contender(server, name, ask, connections=FEWER_CONNECTIONS)
            for name, ask in asks.items()
        ]
        yield from take_turns("wide", contenders, bench.rounds)


def start(bench: Bench) -> Iterator[Measured]:
    """Yield the time from exec to the first right prediction."""
    systems = {
        "bare": SYSTEMS["bare"],
        "model_in_image": SYSTEMS["this"],
        "model_load": MODEL_LOAD,
    }
    for at in range(-1, bench.rounds):
        for name in random.sample(list(systems), len(systems)):
            with bench.server(systems[name]) as server:
                seconds = bench.until_right(server)
            if at >= 0:  # the first one reads from the disk
                yield Measured("start", name, at, {"start_seconds": seconds})


def memory(bench: Bench) -> Iterator[Measured]:
    """Yield the memory of all processes of a server, after a few seconds of load."""
    looked_at = {"bare": ("bare", "1"), "one worker": ("this", "1"), "four workers": ("this", "4")}
    for at in range(min(_MEMORY_ROUNDS, bench.rounds)):
        for name, (system, count) in looked_at.items():
            with bench.server(SYSTEMS[system], settings={"WORKERS": count}) as server:
                bench.until_right(server)
                # Longer than what a server does soon after its start.
                longer = replace(bench, seconds=_MEMORY_SECONDS)
                longer.contender(server, name).turn("memory", at, asks_health=False)
                taken = ProcessTree(server.process.pid).pss_bytes()
            yield Measured("memory", name, at, {"memory_bytes": taken})


def workers(bench: Bench) -> Iterator[Measured]:
    """Yield one worker on one core, and two on two."""
    if len(bench.cores.servers) < 2:
        raise NotMeasured("it needs three cores: two for the workers, one for the load")
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
            bench.until_right(server)
            contenders.append(bench.contender(server, name))
        yield from take_turns("workers", contenders, bench.rounds)


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        predict, infer, latency, slow, wide, start, memory, workers,
        costs.rows, costs.connections, costs.sizes,
    )
}  # fmt: skip


def _of(  # noqa: PLR0913 - what a scenario may choose
    bench: Bench,
    scenario: str,
    systems: Sequence[System],
    connections: int,
    *,
    model: str = "iris",
    asks_health: bool = False,
) -> Iterator[Measured]:
    """Yield the windows of those systems that start, and why the others did not."""
    with ExitStack() as stack:
        contenders = []
        for system in systems:
            try:
                system.install()
                server = stack.enter_context(bench.server(system, model))
                # The limit knows but one answer.
                if system.name != "limit":
                    bench.until_right(server, model)
                else:
                    server.wait_until_right(system.ask, lambda _: None)
            except NotMeasured as why:
                bench.say(f"{system.name}: {why}")
                yield Measured(scenario, system.name, 0, {}, dropped=str(why))
            else:
                contenders.append(bench.contender(server, system.name, connections=connections))
        yield from take_turns(scenario, contenders, bench.rounds, asks_health=asks_health)


def _wide_asks() -> dict[str, Ask]:
    rows = np.random.default_rng(0).random(_WIDE, dtype=np.float32)
    tensor: dict[str, Any] = {"name": "input", "shape": list(rows.shape), "datatype": "FP32"}
    path = "/v2/models/wide/infer"
    size = {"binary_data_size": rows.nbytes}
    head = json.dumps({"inputs": [{**tensor, "parameters": size}]}).encode()
    return {
        "json": Ask(
            path, json.dumps({"inputs": [{**tensor, "data": rows.ravel().tolist()}]}).encode()
        ),
        "binary": Ask(
            path,
            head + rows.tobytes(),
            "application/octet-stream",
            (("Inference-Header-Content-Length", str(len(head))),),
        ),
    }
