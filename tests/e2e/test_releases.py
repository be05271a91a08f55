"""Releases on a real cluster under steady load: no operation may fail a request.

The tests of a mode run in order, as releases do: each starts with the state that the previous
one left in the cluster.
"""

import json
from collections import Counter
from functools import partial

import pytest

from release.kubernetes.kubectl import get, kubectl
from release.kubernetes.revision import Revision
from release.kubernetes.track import Track
from tests.e2e.conftest import CLIENTS, NAMESPACE, Load, make, run
from tests.servers import wait_until

SECONDS = 300


def current(deployment: str) -> Revision:
    return Track(NAMESPACE, deployment).current()


def canary(deployment: str) -> Track:
    return Track(NAMESPACE, deployment, "canary")


def has_replicas(deployment: str, replicas: int) -> bool:
    status = Track(NAMESPACE, deployment).read()["status"]
    return bool(status.get("replicas") == status.get("readyReplicas") == replicas)


@pytest.mark.short
def test_a_deployment_serves_its_release(mode: str, deployed: str, load: Load) -> None:
    answered, failed = load.counts()

    assert current(deployed).model == "e2e/1"
    assert set(answered) == {"e2e/1"}
    assert failed == Counter()


@pytest.mark.short
def test_an_update_of_the_model(mode: str, deployed: str, load: Load) -> None:
    with load.without_failures("model update"):
        process = make("deploy", mode, "e2e/2", "IMAGE_TAG=e2e-1")

    assert process.returncode == 0
    assert load.counts()[0]["e2e/2"] > 0


def test_an_update_of_the_image(mode: str, deployed: str, load: Load) -> None:
    before = current(deployed)

    with load.without_failures("image update"):
        process = make("deploy", mode, "e2e/2", "IMAGE_TAG=e2e-2")

    assert process.returncode == 0
    assert current(deployed).image_id != before.image_id
    assert current(deployed).contract_sha256 == before.contract_sha256


@pytest.mark.short
def test_a_canary_of_a_model_through_all_steps(mode: str, deployed: str, load: Load) -> None:
    # In 15 s a fresh replica of six was sent 111 requests on two cores: too close to the minimum.
    steps = ("AUTO=1", "STEPS=25,50,100", "BAKE=25", "MIN_REQUESTS=100")

    with load.without_failures("canary through all steps"):
        process = make("canary", mode, "e2e/1", "IMAGE_TAG=e2e-2", *steps)

    assert process.returncode == 0
    assert current(deployed).model == "e2e/1"
    assert not canary(deployed).exists()


@pytest.mark.short
def test_a_rollback_restores_image_and_model(mode: str, deployed: str, load: Load) -> None:
    before = current(deployed)
    update = make("deploy", mode, "e2e/2", "IMAGE_TAG=e2e-1", "MEMORY=256Mi")
    assert update.returncode == 0
    assert "memory: 256Mi (MEMORY=)" in update.stdout
    assert current(deployed).image_id != before.image_id
    assert current(deployed).memory_limit == "256Mi"

    with load.without_failures("rollback"):
        process = make("rollback", mode, "e2e/2")

    assert process.returncode == 0
    assert current(deployed) == before
    assert "rolling back from e2e/2" in process.stdout
    assert "to e2e/1" in process.stdout


def test_a_canary_of_an_image_is_aborted(mode: str, deployed: str, load: Load) -> None:
    """The canary has a new image and the stable model."""
    before = current(deployed)

    with load.without_failures("canary by hand, abort"):
        assert make("canary", mode, "e2e/1", "IMAGE_TAG=e2e-1", "WEIGHT=33").returncode == 0
        assert canary(deployed).current().image_id != before.image_id
        assert make("deploy", mode, "e2e/2", "IMAGE_TAG=e2e-1").returncode != 0
        assert make("canary", mode, "e2e/1", "IMAGE_TAG=e2e-1", "WEIGHT=50").returncode == 0
        process = make("abort", mode, "e2e/1")

    assert process.returncode == 0
    assert current(deployed) == before


def test_too_little_traffic_is_inconclusive(mode: str, deployed: str, load: Load) -> None:
    steps = ("AUTO=1", "STEPS=25,100", "BAKE=5", "MIN_REQUESTS=1000000")

    process = make("canary", mode, "e2e/2", "IMAGE_TAG=e2e-2", *steps)

    assert process.returncode != 0
    assert "inconclusive" in process.stderr
    assert canary(deployed).exists()
    assert make("abort", mode, "e2e/2").returncode == 0


def test_a_canary_with_a_wrong_model_is_aborted(mode: str, deployed: str, load: Load) -> None:
    """The model was trained on shuffled labels: it loads and reproduces its own golden rows."""
    before = current(deployed)

    with load.without_failures("canary with a wrong model"):
        process = make("canary", mode, "e2e/3", "IMAGE_TAG=e2e-2", "AUTO=1", "BAKE=15")

    assert process.returncode != 0
    assert "golden rows of the stable model e2e/1: expected the same result" in process.stderr
    assert not canary(deployed).exists()
    assert current(deployed) == before


def test_after_a_failed_rollout_the_previous_release_keeps_serving(
    mode: str, deployed: str, load: Load
) -> None:
    """No node can get the image."""
    before = current(deployed)

    with load.without_failures("release that never becomes ready"):
        process = make("deploy", mode, "e2e/2", "IMAGE_TAG=e2e-gone", "LOAD_IMAGE=true")

    assert process.returncode != 0
    assert "ImagePullBackOff" in process.stderr
    assert "The previous release keeps serving" in process.stderr
    assert current(deployed) == before


def test_a_deleted_pod_fails_no_request(deployed: str, load: Load) -> None:
    pod = Track(NAMESPACE, deployed).pods()[0]["metadata"]["name"]

    with load.without_failures("kubectl delete pod"):
        kubectl("delete", f"pod/{pod}", f"--namespace={NAMESPACE}", seconds=SECONDS)
        wait_until(lambda: has_replicas(deployed, 2), SECONDS)


def test_a_worker_that_exits_fails_no_request(deployed: str, load: Load) -> None:
    """Another worker starts in the same pod; connections wait in the socket's queue for it."""
    pod = Track(NAMESPACE, deployed).pods()[0]["metadata"]["name"]
    execute = ("exec", pod, f"--namespace={NAMESPACE}", "--container=server", "--")
    worker = "cat /proc/1/task/1/children"
    before = kubectl(*execute, "sh", "-c", worker).split()

    with load.without_failures("worker kill"):
        kubectl(*execute, "sh", "-c", f"kill {before[0]}")
        wait_until(lambda: before[0] not in kubectl(*execute, "sh", "-c", worker).split(), SECONDS)

    pods = {item["metadata"]["name"]: item for item in Track(NAMESPACE, deployed).pods()}
    assert pods[pod]["status"]["containerStatuses"][0]["restartCount"] == 0


def test_scaling_out_and_in_fails_no_request(deployed: str, load: Load) -> None:
    scaler = (f"horizontalpodautoscaler/{deployed}", f"--namespace={NAMESPACE}", "--type=merge")

    with load.without_failures("scale 2 -> 6 -> 2"):
        for minimum, maximum in ((6, 6), (2, 2)):
            limits = {"spec": {"minReplicas": minimum, "maxReplicas": maximum}}
            kubectl("patch", *scaler, f"--patch={json.dumps(limits)}")
            wait_until(partial(has_replicas, deployed, minimum), SECONDS)


@pytest.mark.short
def test_the_inventory_lists_every_replica(mode: str, deployed: str) -> None:
    process = run("inventory", "FORMAT=json")

    inventory = json.loads(process.stdout)
    url = f"{NAMESPACE}/{deployed}-"
    replicas = [replica for replica in inventory["replicas"] if replica["url"].startswith(url)]
    assert len(replicas) == 2
    assert {
        (replica["mode"], replica["track"], replica["model"]["version"]) for replica in replicas
    } == {(mode, "stable", "1")}
    assert not [line for line in inventory["disagreements"] if NAMESPACE in line]


def test_prune_keeps_images_that_run_or_that_a_rollback_needs(deployed: str) -> None:
    process = run("prune", "KEEP=1")

    assert process.returncode == 0
    assert "cluster of the context" in process.stdout
    images = {revision.image for revision in Track(NAMESPACE, deployed).revisions()}
    assert len(images) > 1
    assert process.stdout.count("the cluster needs it") >= len(images)


@pytest.mark.parametrize("setting", ["MODE=other", "WEIGHT=0", "MEMORY=512"])
def test_an_invalid_variable_is_rejected(mode: str, deployed: str, setting: str) -> None:
    variable, _, value = setting.partition("=")
    variables = [setting] if variable != "MODE" else []
    mode = value if variable == "MODE" else mode

    process = make("canary", mode, "e2e/2", "IMAGE_TAG=e2e-2", *variables)

    assert process.returncode != 0
    assert f"{variable}: expected" in process.stderr


# Runs in a pod: connects to an address and prints the result.
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3).close()
    print("connected")
except OSError as error:
    print("refused:", error)
"""


def connection(pod: str, namespace: str, address: str, port: int) -> str:
    """Return the result of a TCP connection from inside a pod."""
    execute = ("exec", pod, f"--namespace={namespace}", "--", "python", "-c", CONNECT)
    return kubectl(*execute, address, str(port), seconds=30).strip()


@pytest.mark.short
def test_the_network_policy_is_enforced(deployed: str, load: Load) -> None:
    """Other namespaces reach the port of predictions only, and a server reaches nothing."""
    pod = Track(NAMESPACE, deployed).pods()[0]
    server, address = pod["metadata"]["name"], pod["status"]["podIP"]
    client = get(f"pod/{deployed}", f"--namespace={CLIENTS}")["status"]["podIP"]
    dns = get("service/kube-dns", "--namespace=kube-system")["spec"]["clusterIP"]

    assert connection(deployed, CLIENTS, address, 8000) == "connected"
    assert connection(deployed, CLIENTS, dns, 53) == "connected"
    assert connection(deployed, CLIENTS, address, 9000).startswith("refused")
    # The client does not listen: without a policy the error is "Connection refused".
    assert "timed out" in connection(server, NAMESPACE, client, 8000)
    assert connection(server, NAMESPACE, dns, 53).startswith("refused")


@pytest.mark.short
def test_a_model_in_an_image_volume(images: str) -> None:
    assert make("build-model", "model_load", "e2e/1").returncode == 0
    try:
        process = make("deploy", "model_load", "e2e/1", "IMAGE_TAG=e2e-1", "SOURCE=image_volume")
        assert process.returncode == 0, process.stderr
        assert current("e2e-model-load").source == "image_volume"
    finally:
        assert make("destroy", "model_load", "e2e/1").returncode == 0
