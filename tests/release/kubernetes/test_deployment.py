"""Which objects of a cluster belong to a release, also if an older version deployed them.

A program on PATH replaces kubectl: it reads objects from a file and records commands. tests/e2e
covers a real cluster.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from artifact.contract import parse_contract
from release.images.build import ReleaseImages
from release.kubernetes import commands
from release.kubernetes.deploy import apply, destroy
from release.kubernetes.deployment import Deployment, find_instance
from release.kubernetes.kubectl import ClusterError
from release.kubernetes.manifests import MODEL, Manifests, instance_of
from tests.fakes import unavailable
from tests.manifests import IRIS

ROOT = Path(__file__).parent.parent.parent.parent
NAMESPACE = "inference"
# The name that older versions gave to the releases of my_model, my.model, and my-model alike.
SHARED = "my-model-model-load"
KUBECTL = """#!{python} -IS
import json, os, sys
verb, *arguments = sys.argv[1:]
objects = json.load(open({state!r}))
options = dict(word[2:].split("=", 1) for word in arguments if "=" in word)
if verb == "kustomize":
    os.execv({real!r}, [{real!r}, *sys.argv[1:]])
elif [verb, *arguments] == ["config", "current-context"]:
    print("a-test")
elif verb != "get":
    stdin = sys.stdin.read() if "--filename=-" in arguments else ""
    with open({record!r}, "a") as file:
        file.write(json.dumps([[verb, *arguments], stdin]) + "\\n")
elif "/" in arguments[0]:
    name = options["namespace"] + "/" + arguments[0]
    if name not in objects:
        sys.exit('Error from server (NotFound): "' + arguments[0] + '" not found')
    print(json.dumps(objects[name]))
else:
    print(json.dumps({{"items": objects.get(arguments[0], [])}}))
"""


@dataclass
class Cluster:
    """The objects that kubectl returns, and a record of the commands that it received."""

    directory: Path
    objects: dict[str, Any] = field(default_factory=dict)

    def save(self) -> None:
        (self.directory / "objects.json").write_text(json.dumps(self.objects))

    def deploy(self, instance: str, model: str, namespace: str = NAMESPACE) -> None:
        """Have a complete Deployment of a model, and its autoscaler."""
        status = dict.fromkeys(("replicas", "updatedReplicas", "availableReplicas"), 2)
        self.objects[f"{namespace}/deployment/{instance}"] = {
            "metadata": {"uid": instance, "generation": 1},
            "spec": {"replicas": 2, "template": template(model)},
            "status": {**status, "observedGeneration": 1},
        }
        scaler = {"metadata": {}, "spec": {"minReplicas": 2, "maxReplicas": 6}}
        self.objects[f"{namespace}/horizontalpodautoscaler/{instance}"] = scaler
        self.save()

    def keep_revisions(self, instance: str, *models: str) -> None:
        """Have the ReplicaSets of a Deployment, the newest first."""
        self.objects["replicasets"] = [
            {
                "metadata": {
                    "name": f"{instance}-{number}",
                    "ownerReferences": [{"uid": instance}],
                    "annotations": {"deployment.kubernetes.io/revision": str(number)},
                },
                "spec": {"template": template(model)},
            }
            for number, model in zip(range(len(models), 0, -1), models, strict=True)
        ]
        self.save()

    def commands(self) -> list[tuple[list[str], Any]]:
        """Return the commands that would change something, each with the object of its stdin."""
        record = self.directory / "record.jsonl"
        lines = record.read_text().splitlines() if record.exists() else []
        return [(arguments, parsed(stdin)) for arguments, stdin in map(json.loads, lines)]


def parsed(stdin: str) -> Any:
    try:
        return json.loads(stdin)
    except ValueError:
        return None  # the namespace, as YAML


def template(model: str) -> dict[str, Any]:
    annotations = {MODEL: model} if model else {}
    return {
        "metadata": {"labels": {}, "annotations": annotations},
        "spec": {"containers": [{"name": "server", "image": "model_load:1"}]},
    }


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """An empty cluster."""
    real = shutil.which("kubectl")
    if real is None:
        unavailable("needs kubectl")
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    files = {"state": str(tmp_path / "objects.json"), "record": str(tmp_path / "record.jsonl")}
    program.write_text(KUBECTL.format(python=sys.executable, real=real, **files))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    empty = Cluster(tmp_path)
    empty.save()
    return empty


def manifests(namespace: str, model: str = "iris", deployed_as: str | None = None) -> Manifests:
    contract = parse_contract(IRIS.read_text(encoding="utf-8"), "iris")
    return Manifests(
        mode="model_load",
        namespace=namespace,
        contract=contract.model_copy(update={"name": model}),
        contract_sha256="a" * 64,
        image="model_load:1",
        image_id=f"sha256:{'a' * 64}",
        path=f"models/{model}/1",
        source="volume",
        deployed_as=deployed_as,
    )


@pytest.mark.parametrize(
    ("deployed", "model", "instance"),
    [
        ({}, "iris", "iris-model-load"),
        ({"iris-model-load": "iris/1"}, "iris", "iris-model-load"),
        ({}, "my-model", SHARED),
        ({SHARED: "my-model/3"}, "my-model", SHARED),
        # As `kubectl apply` leaves it, without annotations.
        ({SHARED: ""}, "my-model", SHARED),
        ({}, "my_model", instance_of("my_model", "model_load")),
        ({SHARED: "my_model/1"}, "my_model", SHARED),
        ({SHARED: "my-model/1"}, "my_model", instance_of("my_model", "model_load")),
        ({SHARED: "my_model/1"}, "my.model", instance_of("my.model", "model_load")),
        ({SHARED: ""}, "my_model", instance_of("my_model", "model_load")),
        (
            {SHARED: "my_model/1", instance_of("my_model", "model_load"): "my_model/2"},
            "my_model",
            instance_of("my_model", "model_load"),
        ),
    ],
)
def test_a_release_is_found_by_its_name_and_its_annotation(
    cluster: Cluster, deployed: dict[str, str], model: str, instance: str
) -> None:
    for name, running in deployed.items():
        cluster.deploy(name, running)

    assert find_instance(NAMESPACE, model, "model_load") == instance


def test_a_name_that_another_model_has_is_refused(cluster: Cluster) -> None:
    """Deploying my-model must not replace what an older version deployed of my_model."""
    cluster.deploy(SHARED, "my_model/1")

    with pytest.raises(
        ClusterError, match=r"expected a release of my-model, got a release of my_model"
    ):
        find_instance(NAMESPACE, "my-model", "model_load")


def command(name: str, model: str, directory: Path) -> str:
    """Run a command for a model, and return what it prints."""
    options = [f"--model=models/{model}/1", "--mode=model_load", f"--namespace={NAMESPACE}"]
    options += [] if name == "destroy" else ["--store=models"]
    done = subprocess.run(
        [sys.executable, "-m", "release", name, *options],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


each_holder = pytest.mark.parametrize(
    ("holder", "acts_on"),
    [("my_model", SHARED), ("my-model", instance_of("my_model", "model_load"))],
)


@each_holder
@pytest.mark.parametrize("name", ["rollback", "promote", "abort"])
def test_commands_act_on_the_release_of_an_older_version_if_it_is_of_the_model(
    cluster: Cluster, holder: str, acts_on: str, name: str
) -> None:
    """Each refuses something, and names the release."""
    cluster.deploy(SHARED, f"{holder}/1")
    cluster.keep_revisions(SHARED, f"{holder}/1")

    output = command(name, "my_model", cluster.directory)

    names = (SHARED, instance_of("my_model", "model_load"))
    assert [name for name in names if name in output] == [acts_on]
    assert cluster.commands() == []


@each_holder
def test_a_deployment_updates_the_release_of_an_older_version_in_place(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, holder: str, acts_on: str
) -> None:
    """It ends where predictions are checked: this cluster has no pods."""
    cluster.deploy(SHARED, f"{holder}/1")
    cluster.deploy(acts_on, "my_model/1")
    monkeypatch.setattr(ReleaseImages, "of", lambda *_: None)
    monkeypatch.setattr(commands, "pair", lambda *_: manifests(NAMESPACE, "my_model"))

    monkeypatch.setattr("release.kubernetes.deploy._SETTLE_SECONDS", 0)

    with pytest.raises(SystemExit, match="expected replicas that predict, got none"):
        commands.deploy("model_load", Path("models/my_model/1"), "models", NAMESPACE, "", Path())

    (deployment,) = (stdin for (verb, *_), stdin in cluster.commands() if verb == "replace")
    assert deployment["metadata"]["name"] == acts_on


@each_holder
def test_destroy_removes_the_release_of_the_model_alone(
    cluster: Cluster, holder: str, acts_on: str
) -> None:
    cluster.deploy(SHARED, f"{holder}/1")

    command("destroy", "my_model", cluster.directory)

    ((arguments, _),) = cluster.commands()
    assert f"--selector=app.kubernetes.io/instance={acts_on}" in arguments


def test_destroy_leaves_the_volumes_of_other_namespaces(cluster: Cluster) -> None:
    """Volumes have no namespace, and a release of the same name has the same labels."""
    cluster.objects["persistentvolumes"] = [
        {"metadata": {"name": name}, "spec": {"claimRef": {"namespace": namespace}}}
        for name, namespace in (("ours", NAMESPACE), ("theirs", "other"))
    ]
    cluster.objects["persistentvolumes"].append({"metadata": {"name": "unbound"}, "spec": {}})
    cluster.save()

    destroy(NAMESPACE, "iris-model-load")

    (objects, _), *volumes = cluster.commands()
    assert "persistentvolumes" not in objects[1]
    assert [arguments[1] for arguments, _ in volumes] == ["persistentvolume/ours"]


def test_a_rollback_skips_releases_of_other_models(cluster: Cluster) -> None:
    """Older versions replaced the release of one model by that of another."""
    cluster.deploy(SHARED, "my-model/3")
    cluster.keep_revisions(SHARED, "my-model/3", "my_model/1", "my-model/2")

    assert Deployment(NAMESPACE, SHARED).before().model == "my-model/2"

    cluster.keep_revisions(SHARED, "my-model/3", "my_model/1")
    with pytest.raises(ClusterError, match="no release before"):
        Deployment(NAMESPACE, SHARED).before()


def applied_volumes(cluster: Cluster) -> set[str]:
    """The names of the volume that was applied and of the volume that its claim names."""
    objects = [stdin for _, stdin in cluster.commands() if stdin]
    volumes = [item for item in objects if item["kind"] == "PersistentVolume"]
    claims = [item for item in objects if item["kind"] == "PersistentVolumeClaim"]
    return {volume["metadata"]["name"] for volume in volumes} | {
        claim["spec"]["volumeName"] for claim in claims
    }


@pytest.mark.parametrize(
    ("namespace", "model", "volume"),
    [
        ("inference", "iris", "inference-iris-model-load-store"),
        ("a-b", "c", "a-b.c-model-load-store"),
        ("a", "b-c", "a.b-c-model-load-store"),
    ],
)
def test_volumes_of_different_namespaces_differ(
    cluster: Cluster, namespace: str, model: str, volume: str
) -> None:
    cluster.deploy(f"{model}-model-load", f"{model}/1", namespace)

    apply(manifests(namespace, model), "stable")

    assert applied_volumes(cluster) == {volume}


def test_a_claim_keeps_the_volume_that_an_older_version_gave_it(cluster: Cluster) -> None:
    """The volume of a claim cannot change; a release in place of it would be refused."""
    cluster.deploy(SHARED, "my_model/1")
    claim = f"{NAMESPACE}/persistentvolumeclaim/{SHARED}-store"
    cluster.objects[claim] = {"spec": {"volumeName": f"{NAMESPACE}-{SHARED}-store"}}
    cluster.save()

    apply(manifests(NAMESPACE, "my_model", deployed_as=SHARED), "stable")

    assert applied_volumes(cluster) == {f"{NAMESPACE}-{SHARED}-store"}
