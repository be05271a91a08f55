"""A real cluster with images and models, and steady load from inside it.

The cluster is that of kubectl's current context. The tests change only two namespaces, which they
create. Without a context the suite creates a kind cluster of three nodes and deletes it afterwards.
REGISTRY and LOAD_IMAGE bring images to the cluster, as for `make deploy`. Models named `e2e` are
published into models/, which the nodes must have at /models (kind.yaml beside this file).
"""

import csv
import json
import os
import random
import shlex
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sklearn.datasets import load_iris

from release.images.docker import registry_prefix
from release.kubernetes.kubectl import ClusterError, current_context, get, kubectl
from tests.manifests import quantity
from tests.servers import wait_until
from training.train import train

ROOT = Path(__file__).parent.parent.parent
NAMESPACE, CLIENTS = "inference-e2e", "inference-e2e-clients"
STORE = ROOT / "models"
SHORT = os.environ.get("SHORT") == "1"
TAGS = ("e2e-1", "e2e-2") if SHORT else ("e2e-1", "e2e-2", "e2e-gone")
VERSIONS = ("1", "2") if SHORT else ("1", "2", "3")
CLUSTER = "inference-e2e"
# Eight servers run at the same time (replicas, canary, fresh replicas, surge), each with 250m of a
# CPU and 192 MiB, and one pod that sends the load.
NEEDED_CPUS, NEEDED_BYTES = 2.0, 2 << 30
LOAD = Path(__file__).with_name("steady_load.py")
LOAD_SECONDS = 3600


def make(target: str, mode: str, model: str, *variables: str) -> subprocess.CompletedProcess[str]:
    """Run a make target for a mode and a model, and print its output."""
    return run(target, f"MODE={mode}", f"MODEL=models/{model}", *variables)


def run(target: str, *variables: str) -> subprocess.CompletedProcess[str]:
    """Run a make target as a user does, and print its output."""
    image_variables = [f"{name}={os.environ[name]}" for name in ("REGISTRY", "LOAD_IMAGE")]
    process = subprocess.run(
        ["make", target, f"NAMESPACE={NAMESPACE}", *image_variables, *variables],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    output = process.stdout + process.stderr
    print(f"\n$ make {target} {' '.join(variables)}\n{output}", flush=True)
    return process


@pytest.fixture(scope="session", autouse=True)
def _cluster() -> Iterator[None]:
    """A reachable cluster with enough free resources; created if no context is configured."""
    is_created = current_context() is None
    if is_created:
        config = Path(__file__).with_name("kind.yaml")
        # The nodes mount this folder, so it must exist.
        STORE.mkdir(exist_ok=True)
        # A killed run may have left its cluster. Without one this does nothing.
        _kind("delete", "cluster", "--name", CLUSTER)
        _kind("create", "cluster", "--name", CLUSTER, "--config", str(config), "--wait=180s")
        if not os.environ.get("REGISTRY"):
            os.environ["LOAD_IMAGE"] = f"kind load docker-image --name {CLUSTER}"
        kubectl("wait", "--for=condition=Ready", "nodes", "--all", "--timeout=180s", seconds=190)
    try:
        try:
            version = json.loads(kubectl("version", "--output=json"))["serverVersion"]["gitVersion"]
            cpus, free_bytes = free_resources()
        except ClusterError as error:
            pytest.exit(f"make e2e: kubectl's current context has no usable cluster: {error}", 1)
        print(
            f"\nKubernetes {version}; unrequested on nodes for pods: {cpus:.2f} CPUs, "
            f"{free_bytes / 2**30:.1f} GiB; needed: {NEEDED_CPUS:g} CPUs, "
            f"{NEEDED_BYTES / 2**30:g} GiB",
            flush=True,
        )
        if cpus < NEEDED_CPUS or free_bytes < NEEDED_BYTES:
            pytest.exit(
                "make e2e: the cluster has too few free CPUs or memory: add a node",
                1,
            )
        yield
    finally:
        if is_created:
            _kind("delete", "cluster", "--name", CLUSTER)


def _kind(*arguments: str) -> None:
    print(f"$ kind {' '.join(arguments)}", flush=True)
    process = subprocess.run(
        ["kind", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if process.returncode:
        pytest.exit(f"make e2e: kind {arguments[0]} {arguments[1]}: {process.stderr}", 1)


def _taints(node: dict[str, Any]) -> list[str]:
    """Return the keys of a node's taints, except `not-ready`, which Kubernetes removes shortly."""
    keys = [taint["key"] for taint in node["spec"].get("taints", [])]
    return [key for key in keys if key != "node.kubernetes.io/not-ready"]


def free_resources() -> tuple[Decimal, Decimal]:
    """Return the CPUs and bytes that no pod requests, on the nodes without a taint."""
    nodes = [node for node in get("nodes")["items"] if not _taints(node)]
    names = {node["metadata"]["name"] for node in nodes}
    running = [
        pod
        for pod in get("pods", "--all-namespaces")["items"]
        if pod["spec"].get("nodeName") in names and pod["status"]["phase"] in ("Pending", "Running")
    ]
    requests = [
        container.get("resources", {}).get("requests", {})
        for pod in running
        for container in pod["spec"]["containers"]
    ]
    cpus, free_bytes = (
        sum((quantity(node["status"]["allocatable"][resource]) for node in nodes), Decimal())
        - sum((quantity(request.get(resource, "0")) for request in requests), Decimal())
        for resource in ("cpu", "memory")
    )
    return cpus, free_bytes


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Versions 1 and 2 of one model, each trained on half of the data; 3 on shuffled labels."""
    flowers = load_iris()
    names = flowers.target_names[flowers.target]
    shuffled = list(names)
    random.Random(0).shuffle(shuffled)  # noqa: S311 - no secret
    for version, labels, rows in (
        ("1", names, slice(0, None, 2)),
        ("2", names, slice(1, None, 2)),
        ("3", shuffled, slice(None)),
    ):
        if version not in VERSIONS or (STORE / "e2e" / version).exists():
            continue
        file = tmp_path_factory.mktemp("data") / "flowers.csv"
        with file.open("w", newline="", encoding="utf-8") as csv_file:
            writer = csv.writer(csv_file)
            writer.writerow([*flowers.feature_names, "species"])
            pairs = list(zip(flowers.data, labels, strict=True))[rows]
            writer.writerows([*row, label] for row, label in pairs)
        purpose = "test a cluster"
        train(
            data=file, target="species", name="e2e", version=version, store=STORE, purpose=purpose
        )


@pytest.fixture(scope="session")
def images(models: None) -> str:
    """Two different server images for every model, and one that is never loaded into a node."""
    for tag in TAGS:
        for version in VERSIONS:
            assert make("build", "model_load", f"e2e/{version}", f"IMAGE_TAG={tag}").returncode == 0
    assert make("compatibility", "model_load", "e2e/1").returncode == 0
    return registry_prefix(os.environ.get("REGISTRY"))


class Load:
    """A pod that sends steady predictions to a Service, and the totals of their results."""

    def __init__(self, pod: str) -> None:
        self._pod = pod

    def counts(self) -> tuple[Counter[str], Counter[str]]:
        """Return answered requests by model, and failed ones by reason."""
        line = kubectl("logs", self._pod, f"--namespace={CLIENTS}", "--tail=1").strip()
        counts = json.loads(line) if line else {"answered": {}, "failed": {}}
        return Counter(counts["answered"]), Counter(counts["failed"])

    @contextmanager
    def without_failures(self, operation: str) -> Iterator[None]:
        """Fail if any request fails during the operation or shortly after it."""
        before, failed_before = self.counts()
        yield
        at_end = self.counts()[0].total()
        # Requests that were in flight at the end are counted as well.
        wait_until(lambda: self.counts()[0].total() > at_end + 100, 60)
        answered, failed = self.counts()
        new_failures = failed - failed_before
        count = answered.total() - before.total()
        print(f"{operation}: {count} requests answered, {new_failures.total()} failed", flush=True)
        assert new_failures == Counter()
        assert count > 0


@pytest.fixture(scope="module", params=["model_load", "model_in_image"])
def mode(request: pytest.FixtureRequest) -> str:
    """Each release mode in turn."""
    return str(request.param)


@pytest.fixture(scope="module")
def deployed(mode: str, images: str) -> Iterator[str]:
    """The first release of a mode; the deployment is destroyed at the end."""
    process = make("deploy", mode, "e2e/1", "IMAGE_TAG=e2e-1")
    assert process.returncode == 0, process.stderr
    yield f"e2e-{mode.replace('_', '-')}"
    assert make("destroy", mode, "e2e/1").returncode == 0


@pytest.fixture(scope="module")
def load(deployed: str, images: str) -> Iterator[Load]:
    """Steady load on a deployment, from another namespace."""
    image = f"{images}model_load:e2e-1"
    load_image = shlex.split(os.environ["LOAD_IMAGE"])
    subprocess.run([*load_image, image], check=True, stdout=subprocess.DEVNULL)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": CLIENTS}}
    kubectl("apply", "--filename=-", stdin=json.dumps(namespace))
    service = get(f"service/{deployed}", f"--namespace={NAMESPACE}")
    url = f"http://{service['spec']['clusterIP']}"
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": deployed, "namespace": CLIENTS},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "load",
                    "image": image,
                    "command": ["python", "-c", LOAD.read_text(), url, str(LOAD_SECONDS)],
                }
            ],
        },
    }
    kubectl("delete", f"pod/{deployed}", f"--namespace={CLIENTS}", "--ignore-not-found", seconds=60)
    kubectl("create", "--filename=-", stdin=json.dumps(pod))
    where = f"--namespace={CLIENTS}"
    kubectl(
        "wait", "--for=condition=Ready", f"pod/{deployed}", where, "--timeout=120s", seconds=130
    )
    steady = Load(deployed)
    wait_until(lambda: steady.counts()[0].total() > 0, 60)
    yield steady
    kubectl("delete", f"pod/{deployed}", where, seconds=60)
