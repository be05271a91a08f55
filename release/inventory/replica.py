"""Collect the inventory of running servers: one GET /inventory for each worker process.

Invariant: every fact comes from the process that serves, never from a manifest or a label.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

from artifact.redact import redact
from release.kubernetes.kubectl import ClusterError

_REQUEST_SECONDS = 10
# In a cluster, each connection is a kubectl process of about 50 MB.
_MAX_PARALLEL_SERVERS = 8
# Workers share one port, so each request reaches an arbitrary worker.
_MAX_ROUNDS = 20

_REQUIRED_FIELDS = {
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

# The JSON object that GET /inventory returns.
Inventory = dict[str, Any]


@dataclass(frozen=True)
class Address:
    """The address of a server, and the place of the server in a cluster."""

    name: str  # for people
    # Opens a connection; yields the URL, which is valid until the end of the `with` block.
    connect: Callable[[], AbstractContextManager[str]]
    track: str | None = None  # None outside a cluster
    deployment: str | None = None  # namespace/name; None outside a cluster
    # The contract that the pod's annotation promises; None outside a cluster.
    contract_sha256: str | None = None

    @classmethod
    def of(cls, url: str) -> "Address":
        """Return the address of a URL; its user:password@ is sent but never shown."""
        return cls(redact(url), lambda: nullcontext(url.rstrip("/")))


@dataclass(frozen=True)
class Replica:
    """One worker process of a server."""

    address: Address
    inventory: Inventory

    @property
    def url(self) -> str:
        """The address of the server, for people."""
        return self.address.name

    @property
    def model(self) -> str:
        """The name and version of the model, such as `iris/1`."""
        return f"{self.inventory['model']['name']}/{self.inventory['model']['version']}"

    @property
    def contract_sha256(self) -> str:
        """The sha256 of the contract that the replica serves."""
        sha256: str = self.inventory["model"]["contract_sha256"]
        return sha256

    def package(self, name: str) -> str | None:
        """Return the installed version of a package; None if it is not installed."""
        version: str | None = self.inventory["packages"].get(name)
        return version

    @property
    def release(self) -> str | None:
        """The image and the model; None if the image is unknown.

        Replicas of one release must be equal in everything else.
        """
        image = self.inventory["image"]
        return f"replicas of {image} {self.model}" if image not in (None, "unknown") else None


def query_replicas(addresses: Iterable[Address]) -> tuple[list[Replica], list[str]]:
    """Return each worker of each server, and a message for each server that did not answer."""
    with ThreadPoolExecutor(_MAX_PARALLEL_SERVERS) as threads:
        results = list(threads.map(_query_server, addresses))
    replicas = [replica for workers, _ in results for replica in workers]
    return replicas, [message for _, message in results if message]


def _query_server(address: Address) -> tuple[list[Replica], str | None]:
    """Return the workers of a server, and a message if any did not answer."""
    try:
        with address.connect() as url:
            workers, expected = _query_workers(address, url)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, ClusterError) as error:
        return [], f"{address.name}: cannot read /inventory: {_reason(error)}"
    if len(workers) < expected:
        return workers, f"{address.name}: {len(workers)} of {expected} workers answered"
    return workers, None


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        hint = ": if MANAGEMENT_PORT is set, use that port"
        return f"status {status}{hint if status == httpx.codes.NOT_FOUND else ''}"
    if isinstance(error, httpx.InvalidURL):  # its message contains parts of the URL
        return "expected http://host:port"
    return redact(str(error).partition("\n")[0]) or type(error).__name__


def _query_workers(address: Address, url: str) -> tuple[list[Replica], int]:
    """Request until every worker has answered, at most _MAX_ROUNDS times.

    Return the workers that answered and the number of workers that the server has.
    """
    workers: dict[tuple[str, int], Replica] = {}
    expected = 1
    with (
        # Without keep-alive each request opens a connection, which any worker may accept.
        httpx.Client(timeout=_REQUEST_SECONDS, headers={"Connection": "close"}) as client,
        ThreadPoolExecutor() as threads,
    ):
        for _ in range(_MAX_ROUNDS):
            # Send the requests in parallel: one idle worker could answer all sequential requests.
            urls = [url] * (2 * expected - 1)
            for inventory in threads.map(partial(_get_inventory, client), urls):
                workers[inventory["host"], inventory["pid"]] = Replica(address, inventory)
                expected = inventory["settings"]["workers"]
            if len(workers) >= expected:
                break
    return [workers[process] for process in sorted(workers)], expected


def _get_inventory(client: httpx.Client, url: str) -> Inventory:
    """Return the inventory of the worker that answers. Raises ValueError if fields are missing."""
    inventory: Inventory = client.get(f"{url}/inventory").raise_for_status().json()
    missing = (
        _REQUIRED_FIELDS.difference(inventory) if isinstance(inventory, dict) else _REQUIRED_FIELDS
    )
    if missing:
        raise ValueError(
            f"the response lacks {', '.join(sorted(missing))}: the server may be an older version"
        )
    return inventory
