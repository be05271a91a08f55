"""One process that serves, as it answers for itself at /inventory."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

_ASK_SECONDS = 10
# Answers come from any worker.
_ROUNDS = 20

Answer = dict[str, Any]


@dataclass(frozen=True)
class Replica:
    """One process that serves: where it was asked, and what it answered."""

    url: str
    answer: Answer

    @property
    def model(self) -> str:
        """Its model, as `iris/1`."""
        return f"{self.answer['model']['name']}/{self.answer['model']['version']}"

    def package(self, name: str) -> str | None:
        """Return the version that it has of a package, None if none."""
        version: str | None = self.answer["packages"].get(name)
        return version

    @property
    def release(self) -> tuple[Any, ...]:
        """What replicas have in common that must not differ in anything else."""
        return self.answer["mode"], self.answer["image"], self.model


def ask(urls: Iterable[str]) -> tuple[list[Replica], list[str]]:
    """Return every worker of every server, and what could not be asked."""
    replicas, silent = [], []
    for url in urls:
        try:
            replicas += _workers(url.rstrip("/"))
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError) as error:
            silent.append(f"{url}: no /inventory there: {error or type(error).__name__}")
    return replicas, silent


def _workers(url: str) -> list[Replica]:
    """Ask one address until all of its workers have answered, or long enough."""
    found: dict[int, Replica] = {}
    wanted = 1
    with (
        httpx.Client(timeout=_ASK_SECONDS, headers={"Connection": "close"}) as client,
        ThreadPoolExecutor() as threads,
    ):
        for _ in range(_ROUNDS):
            # At the same time: one that is idle would answer them all, one by one.
            for answer in threads.map(partial(_answer, client), [url] * (2 * wanted - 1)):
                found[answer["pid"]] = Replica(url, answer)
                wanted = answer["settings"]["workers"]
            if len(found) >= wanted:
                break
    return [found[pid] for pid in sorted(found)]


def _answer(client: httpx.Client, url: str) -> Answer:
    answer: Answer = client.get(f"{url}/inventory").raise_for_status().json()
    return answer
