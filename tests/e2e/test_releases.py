"""Releases on a real cluster, under steady load: nothing that is done may fail a request.

The tests of a mode follow one another as releases do; each leaves the cluster to the next.
"""

import json
from collections import Counter
from functools import partial

import pytest

from release.kubernetes.deployment import Deployment, Revision
from release.kubernetes.kubectl import get, kubectl
from tests.e2e.conftest import CLIENTS, NAMESPACE, Load, make, run
from tests.servers import wait_until

SECONDS = 300


def runs(instance: str) -> Revision:
    return Deployment(NAMESPACE, instance).current()


def has_replicas(instance: str, wanted: int) -> bool:
    status = Deployment(NAMESPACE, instance).read()["status"]
    return bool(status.get("replicas") == status.get("readyReplicas") == wanted)


@pytest.mark.short
def test_a_release_serves_what_it_says(mode: str, deployed: str, load: Load) -> None:
    answered, failed = load.so_far()

    assert runs(deployed).model == "e2e/1"
    assert set(answered) == {"e2e/1"}
    assert failed == Counter()


@pytest.mark.short
def test_a_new_model(mode: str, deployed: str, load: Load) -> None:
    with load.without_a_failure("model update"):
        done = make("deploy", mode, "e2e/2", "IMAGE_TAG=e2e-1")

    assert done.returncode == 0
    assert load.so_far()[0]["e2e/2"] > 0


def test_a_new_image(mode: str, deployed: str, load: Load) -> None:
    before = runs(deployed)

    with load.without_a_failure("image update"):
        done = make("deploy", mode, "e2e/2", "IMAGE_TAG=e2e-2")

    assert done.returncode == 0
    assert runs(deployed).image_id != before.image_id
    assert runs(deployed).contract_sha256 == before.contract_sha256


@pytest.mark.short
def test_a_canary_of_a_model_through_all_steps(mode: str, deployed: str, load: Load) -> None:
    # In 15 s a fresh replica of six was sent 111 requests on two cores: too near to the minimum.
    steps = ("AUTO=1", "STEPS=25,50,100", "BAKE=25", "MIN_REQUESTS=100")

    with load.without_a_failure("canary through all steps"):
        done = make("canary", mode, "e2e/1", "IMAGE_TAG=e2e-2", *steps)

    assert done.returncode == 0
    assert runs(deployed).model == "e2e/1"
    assert not Deployment(NAMESPACE, deployed, "canary").exists()


@pytest.mark.short
def test_a_rollback_brings_back_image_and_model(mode: str, deployed: str, load: Load) -> None:
    before = runs(deployed)
    assert make("deploy", mode, "e2e/2", "IMAGE_TAG=e2e-1").returncode == 0
    assert runs(deployed).image_id != before.image_id

    with load.without_a_failure("rollback"):
        done = make("rollback", mode, "e2e/2")

    assert done.returncode == 0
    assert runs(deployed).parts == before.parts
    assert "from e2e/2" in done.stdout
    assert "back to e2e/1" in done.stdout


def test_a_canary_of_an_image_is_aborted(mode: str, deployed: str, load: Load) -> None:
    """The new image, the old model."""
    before = runs(deployed)

    with load.without_a_failure("canary by hand, abort"):
        assert make("canary", mode, "e2e/1", "IMAGE_TAG=e2e-1", "WEIGHT=33").returncode == 0
        assert runs(f"{deployed}-canary").image_id != before.image_id
        assert make("deploy", mode, "e2e/2", "IMAGE_TAG=e2e-1").returncode != 0
        assert make("canary", mode, "e2e/1", "IMAGE_TAG=e2e-1", "WEIGHT=50").returncode == 0
        done = make("abort", mode, "e2e/1")

    assert done.returncode == 0
    assert runs(deployed) == before


def test_too_little_traffic_is_inconclusive(mode: str, deployed: str, load: Load) -> None:
    steps = ("AUTO=1", "STEPS=25,100", "BAKE=5", "MIN_REQUESTS=1000000")

    done = make("canary", mode, "e2e/2", "IMAGE_TAG=e2e-2", *steps)

    assert done.returncode != 0
    assert "inconclusive" in done.stderr
    assert Deployment(NAMESPACE, deployed, "canary").exists()
    assert make("abort", mode, "e2e/2").returncode == 0


def test_a_canary_with_a_wrong_model_is_aborted_by_itself(
    mode: str, deployed: str, load: Load
) -> None:
    """It loads and answers, and its own golden rows come out right."""
    before = runs(deployed)

    with load.without_a_failure("canary with a wrong model"):
        done = make("canary", mode, "e2e/3", "IMAGE_TAG=e2e-2", "AUTO=1", "BAKE=15")

    assert done.returncode != 0
    assert "it agrees on" in done.stderr
    assert not Deployment(NAMESPACE, deployed, "canary").exists()
    assert runs(deployed) == before


def test_a_release_that_never_becomes_ready_leaves_the_old_one_serving(
    mode: str, deployed: str, load: Load
) -> None:
    """An image that no node can have."""
    before = runs(deployed)

    with load.without_a_failure("release that never becomes ready"):
        done = make("deploy", mode, "e2e/2", "IMAGE_TAG=e2e-gone", "LOAD_IMAGE=true")

    assert done.returncode != 0
    assert "ImagePullBackOff" in done.stderr
    assert "serves on" in done.stderr
    assert runs(deployed) == before


def test_a_pod_is_deleted(deployed: str, load: Load) -> None:
    pod = Deployment(NAMESPACE, deployed).pods()[0]["metadata"]["name"]

    with load.without_a_failure("kubectl delete pod"):
        kubectl("delete", f"pod/{pod}", f"--namespace={NAMESPACE}", seconds=SECONDS)
        wait_until(lambda: has_replicas(deployed, 2), SECONDS)


def test_a_worker_ends(deployed: str, load: Load) -> None:
    """Another takes its place, in the same pod; what waits in the socket waits for it."""
    pod = Deployment(NAMESPACE, deployed).pods()[0]["metadata"]["name"]
    inside = ("exec", pod, f"--namespace={NAMESPACE}", "--container=server", "--")
    worker = "cat /proc/1/task/1/children"
    before = kubectl(*inside, "sh", "-c", worker).split()

    with load.without_a_failure("worker kill"):
        kubectl(*inside, "sh", "-c", f"kill {before[0]}")
        wait_until(lambda: before[0] not in kubectl(*inside, "sh", "-c", worker).split(), SECONDS)

    (again,) = (
        one for one in Deployment(NAMESPACE, deployed).pods() if one["metadata"]["name"] == pod
    )
    assert again["status"]["containerStatuses"][0]["restartCount"] == 0


def test_scale_out_and_in(deployed: str, load: Load) -> None:
    scaler = (f"horizontalpodautoscaler/{deployed}", f"--namespace={NAMESPACE}", "--type=merge")

    with load.without_a_failure("scale 2 -> 6 -> 2"):
        for least, most in ((6, 6), (2, 2)):
            limits = {"spec": {"minReplicas": least, "maxReplicas": most}}
            kubectl("patch", *scaler, f"--patch={json.dumps(limits)}")
            wait_until(partial(has_replicas, deployed, least), SECONDS)


@pytest.mark.short
def test_the_inventory_shows_what_runs(mode: str, deployed: str) -> None:
    done = run("inventory", "FORMAT=json")

    shown = json.loads(done.stdout)
    ours = [one for one in shown["replicas"] if one["url"].startswith(f"{NAMESPACE}/{deployed}-")]
    assert len(ours) == 2
    assert {(one["mode"], one["track"], one["model"]["version"]) for one in ours} == {
        (mode, "stable", "1")
    }
    assert not [line for line in shown["disagreements"] if NAMESPACE in line]


def test_prune_keeps_what_runs_and_what_a_rollback_needs(deployed: str) -> None:
    done = run("prune", "KEEP=1")

    assert done.returncode == 0
    assert "cluster of the context" in done.stdout
    kept = {revision.image for revision in Deployment(NAMESPACE, deployed).revisions()}
    assert len(kept) > 1
    assert done.stdout.count("the cluster needs it") >= len(kept)


@pytest.mark.parametrize("setting", ["MODE=other", "WEIGHT=0"])
def test_what_makes_no_sense_is_refused(mode: str, deployed: str, setting: str) -> None:
    variables = [setting] if setting.startswith("WEIGHT") else []
    wrong = "other" if setting.startswith("MODE") else mode

    done = make("canary", wrong, "e2e/2", "IMAGE_TAG=e2e-2", *variables)

    assert done.returncode != 0
    assert f"{setting.partition('=')[0]}: expected" in done.stderr


# Run in a pod: connect to an address and print the result.
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
    inside = ("exec", pod, f"--namespace={namespace}", "--", "python", "-c", CONNECT)
    return kubectl(*inside, address, str(port), seconds=30).strip()


@pytest.mark.short
def test_the_network_policy_is_enforced(deployed: str, load: Load) -> None:
    """Predictions from another namespace work; port 9000 and egress are refused."""
    pod = Deployment(NAMESPACE, deployed).pods()[0]
    server, address = pod["metadata"]["name"], pod["status"]["podIP"]
    client = get(f"pod/{deployed}", f"--namespace={CLIENTS}")["status"]["podIP"]
    dns = get("service/kube-dns", "--namespace=kube-system")["spec"]["clusterIP"]

    assert connection(deployed, CLIENTS, address, 8000) == "connected"
    assert connection(deployed, CLIENTS, dns, 53) == "connected"
    assert connection(deployed, CLIENTS, address, 9000).startswith("refused")
    # The client has no listener: a policy that lets packets pass gives "Connection refused".
    assert "timed out" in connection(server, NAMESPACE, client, 8000)
    assert connection(server, NAMESPACE, dns, 53).startswith("refused")


@pytest.mark.short
def test_a_model_in_an_image_volume(images: str) -> None:
    assert make("build-model", "model_load", "e2e/1").returncode == 0
    try:
        done = make("deploy", "model_load", "e2e/1", "IMAGE_TAG=e2e-1", "SOURCE=image_volume")
        assert done.returncode == 0, done.stderr
        assert runs("e2e-model-load").source == "image_volume"
    finally:
        assert make("destroy", "model_load", "e2e/1").returncode == 0
