"""One process that serves, as it answers for itself at /inventory."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

from artifact.redact import redact
from release.kubernetes.kubectl import ClusterError

_ASK_SECONDS = 10
# Servers at the same time: in a cluster each is a kubectl process of some 50 MB.
_PARALLEL = 8
# Answers come from any worker.
_ROUNDS = 20

_FIELDS = {
    *(
        "mode",
        "image",
        "revision",
        "host",
        "pid",
        "started_at",
        "ready",
        "degraded",
        "os",
        "kernel",
    ),
    *("cpu_features", "python", "packages", "providers", "settings", "model"),
}

Answer = dict[str, Any]


@dataclass(frozen=True)
class Address:
    """Where a server can be asked.

    name: for people. connect: opens a connection and gives the URL, which holds until the end of
    the `with` block. In a cluster the server belongs to the track of an instance, and its pod says
    which contract_sha256 it should serve.
    """

    name: str
    connect: Callable[[], AbstractContextManager[str]]
    track: str | None = None
    instance: str | None = None
    contract_sha256: str | None = None

    @classmethod
    def of(cls, url: str) -> "Address":
        """Return the address of a URL, whose user:password@ is sent and never shown."""
        return cls(redact(url), lambda: nullcontext(url.rstrip("/")))


@dataclass(frozen=True)
class Replica:
    """One process that serves: where it was asked, and what it answered."""

    address: Address
    answer: Answer

    @property
    def url(self) -> str:
        """Where it was asked, for people."""
        return self.address.name

    @property
    def model(self) -> str:
        """Its model, as `iris/1`."""
        return f"{self.answer['model']['name']}/{self.answer['model']['version']}"

    def package(self, name: str) -> str | None:
        """Return the version that it has of a package, None if none."""
        version: str | None = self.answer["packages"].get(name)
        return version

    @property
    def release(self) -> str | None:
        """What replicas have in common that must not differ in anything else; None without one."""
        image = self.answer["image"]
        return f"replicas of {image} {self.model}" if image not in (None, "unknown") else None


def ask(addresses: Iterable[Address]) -> tuple[list[Replica], list[str]]:
    """Return every worker of every server, and a message for each that did not answer."""
    with ThreadPoolExecutor(_PARALLEL) as threads:
        answers = list(threads.map(_ask, addresses))
    replicas = [replica for found, _ in answers for replica in found]
    return replicas, [message for _, message in answers if message]


def _ask(address: Address) -> tuple[list[Replica], str | None]:
    """Return the workers of one server, and what is missing of them."""
    try:
        with address.connect() as url:
            found, wanted = _workers(address, url)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, ClusterError) as error:
        return [], f"{address.name}: no /inventory there: {_why(error)}"
    if len(found) < wanted:
        return found, f"{address.name}: {len(found)} of {wanted} workers answered"
    return found, None


def _why(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        hint = ": MANAGEMENT_PORT has it, if that is set"
        status = error.response.status_code
        return f"status {status}{hint if status == httpx.codes.NOT_FOUND else ''}"
    if isinstance(error, httpx.InvalidURL):  # its text holds parts of the URL
        return "expected http://host:port"
    return redact(str(error).partition("\n")[0]) or type(error).__name__


def _workers(address: Address, url: str) -> tuple[list[Replica], int]:
    """Send requests until every worker has answered, or _ROUNDS times; return their number, too."""
    found: dict[tuple[str, int], Replica] = {}
    wanted = 1
    with (
        httpx.Client(timeout=_ASK_SECONDS, headers={"Connection": "close"}) as client,
        ThreadPoolExecutor() as threads,
    ):
        for _ in range(_ROUNDS):
            # At the same time: one that is idle would answer them all, one by one.
            urls = [url] * (2 * wanted - 1)
            for answer in threads.map(partial(_answer, client), urls):
                found[answer["host"], answer["pid"]] = Replica(address, answer)
                wanted = answer["settings"]["workers"]
            if len(found) >= wanted:
                break
    return [found[process] for process in sorted(found)], wanted


def _answer(client: httpx.Client, url: str) -> Answer:
    """Return an answer that has what the table shows. Raises ValueError for another."""
    answer: Answer = client.get(f"{url}/inventory").raise_for_status().json()
    lacking = _FIELDS.difference(answer) if isinstance(answer, dict) else _FIELDS
    if lacking:
        raise ValueError(f"the answer lacks {', '.join(sorted(lacking))}: an older server?")
    return answer
