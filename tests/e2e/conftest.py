"""A real cluster, images and models for it, and steady load from inside it.

The cluster is that of kubectl's current context; nothing is touched except two namespaces that
these tests make. Without a context the suite makes a kind cluster of three nodes and deletes it.
REGISTRY and LOAD_IMAGE say how images reach the cluster, as for `make deploy`. Models of the name
`e2e` are published into models/, which the nodes must have at /models (kind.yaml beside this file).
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
# Eight servers at the same time (replicas, canary, fresh replicas, surge), each with 250m of a CPU
# and 192 MiB, and the pod that sends the load.
NEEDED_CPUS, NEEDED_BYTES = 2.0, 2 << 30
LOAD = Path(__file__).with_name("steady_load.py")
LOAD_SECONDS = 3600


def make(target: str, mode: str, model: str, *variables: str) -> subprocess.CompletedProcess[str]:
    """Run a target for a release as a user does; what it prints is printed."""
    return run(target, f"MODE={mode}", f"MODEL=models/{model}", *variables)


def run(target: str, *variables: str) -> subprocess.CompletedProcess[str]:
    """Run a target as a user does; what it prints is printed."""
    reach = [f"{name}={os.environ[name]}" for name in ("REGISTRY", "LOAD_IMAGE")]
    done = subprocess.run(
        ["make", target, f"NAMESPACE={NAMESPACE}", *reach, *variables],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    print(f"\n$ make {target} {' '.join(variables)}\n{done.stdout}{done.stderr}", flush=True)
    return done


@pytest.fixture(scope="session", autouse=True)
def _cluster() -> Iterator[None]:
    """A cluster that answers and has room; made and deleted by this suite if there is none."""
    is_made = current_context() is None
    if is_made:
        config = Path(__file__).with_name("kind.yaml")
        # The nodes mount it, so it must exist.
        STORE.mkdir(exist_ok=True)
        # Of a run that was killed; without such a cluster this does nothing.
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
            pytest.exit(f"make e2e: expected a cluster in kubectl's current context: {error}", 1)
        print(
            f"\nKubernetes {version}; unrequested on nodes for pods: {cpus:.2f} CPUs, "
            f"{free_bytes / 2**30:.1f} GiB; needed: {NEEDED_CPUS:g} CPUs, "
            f"{NEEDED_BYTES / 2**30:g} GiB",
            flush=True,
        )
        if cpus < NEEDED_CPUS or free_bytes < NEEDED_BYTES:
            pytest.exit("make e2e: expected as much as is needed, got less: add a node", 1)
        yield
    finally:
        if is_made:
            _kind("delete", "cluster", "--name", CLUSTER)


def _kind(*arguments: str) -> None:
    print(f"$ kind {' '.join(arguments)}", flush=True)
    done = subprocess.run(
        ["kind", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.exit(f"make e2e: kind {arguments[0]} {arguments[1]}: {done.stderr}", 1)


def _taints(node: dict[str, Any]) -> list[str]:
    """Return the keys of a node's taints, except the one of a node that just became ready."""
    keys = [taint["key"] for taint in node["spec"].get("taints", [])]
    return [key for key in keys if key != "node.kubernetes.io/not-ready"]


def free_resources() -> tuple[Decimal, Decimal]:
    """Return the CPUs and bytes that no pod requests, on nodes without a taint."""
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
        sum((quantity(node["status"]["allocatable"][what]) for node in nodes), Decimal())
        - sum((quantity(request.get(what, "0")) for request in requests), Decimal())
        for what in ("cpu", "memory")
    )
    return cpus, free_bytes


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Versions 1 and 2 of one model, on halves of the data; 3 is trained on shuffled labels."""
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
        purpose = "try a cluster"
        train(
            data=file, target="species", name="e2e", version=version, store=STORE, purpose=purpose
        )


@pytest.fixture(scope="session")
def images(models: None) -> str:
    """Two server images that differ, each with every model, and one that no node will have."""
    for tag in TAGS:
        for version in VERSIONS:
            done = make("build", "model_load", f"e2e/{version}", f"IMAGE_TAG={tag}")
            assert done.returncode == 0
    done = make("compatibility", "model_load", "e2e/1")
    assert done.returncode == 0
    return registry_prefix(os.environ.get("REGISTRY"))


class Load:
    """A pod that sends steady predictions to a Service, and what became of them so far."""

    def __init__(self, pod: str) -> None:
        self._pod = pod

    def so_far(self) -> tuple[Counter[str], Counter[str]]:
        """Return answered requests by model, and failed ones by reason."""
        said = kubectl("logs", self._pod, f"--namespace={CLIENTS}", "--tail=1").strip()
        counts = json.loads(said) if said else {"answered": {}, "failed": {}}
        return Counter(counts["answered"]), Counter(counts["failed"])

    @contextmanager
    def without_a_failure(self, what: str) -> Iterator[None]:
        """Fail if any request fails meanwhile, or right after."""
        before, failed_before = self.so_far()
        yield
        at_end = self.so_far()[0].total()
        # What was under way at the end is counted, too.
        wait_until(lambda: self.so_far()[0].total() > at_end + 100, 60)
        answered, failed = self.so_far()
        new_failures = failed - failed_before
        count = answered.total() - before.total()
        print(f"{what}: {count} requests answered, {new_failures.total()} failed", flush=True)
        assert new_failures == Counter()
        assert count > 0


@pytest.fixture(scope="module", params=["model_load", "model_in_image"])
def mode(request: pytest.FixtureRequest) -> str:
    """Each release mode in turn."""
    return str(request.param)


@pytest.fixture(scope="module")
def deployed(mode: str, images: str) -> Iterator[str]:
    """The first release of a mode; it is removed in the end."""
    first = make("deploy", mode, "e2e/1", "IMAGE_TAG=e2e-1")
    assert first.returncode == 0, first.stderr
    yield f"e2e-{mode.replace('_', '-')}"
    assert make("destroy", mode, "e2e/1").returncode == 0


@pytest.fixture(scope="module")
def load(deployed: str, images: str) -> Iterator[Load]:
    """Steady load on the release of a mode, from a namespace of its own."""
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
    wait_until(lambda: steady.so_far()[0].total() > 0, 60)
    yield steady
    kubectl("delete", f"pod/{deployed}", where, seconds=60)
