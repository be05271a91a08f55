"""Which objects in a cluster belong to a deployment, also if an earlier version created them.

A program on PATH replaces kubectl: it reads objects from a file and records commands. tests/e2e
tests a real cluster.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from artifact.contract import parse_contract
from release.images.build import ReleaseImages
from release.kubernetes import annotations, commands
from release.kubernetes.annotations import former_name
from release.kubernetes.deploy import apply, destroy
from release.kubernetes.deployment_name import deployment_name
from release.kubernetes.errors import ReleaseError
from release.kubernetes.manifests import Manifests
from release.kubernetes.track import Track, find_deployment
from tests.fakes import unavailable
from tests.manifests import IRIS

ROOT = Path(__file__).parent.parent.parent.parent
NAMESPACE = "inference"
# The name that earlier versions gave to the deployments of my_model, my.model, and my-model.
SHARED = "my-model-model-load"
# The name that my_model has now.
HASHED = deployment_name("my_model", "model_load")
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
    """The objects that kubectl returns, and the commands that it received."""

    directory: Path
    objects: dict[str, Any] = field(default_factory=dict)

    def save(self) -> None:
        (self.directory / "objects.json").write_text(json.dumps(self.objects))

    def deploy(
        self,
        deployment: str,
        model: str,
        namespace: str = NAMESPACE,
        annotation: str = annotations.MODEL,
    ) -> None:
        """Create a complete Deployment object of a model, and its autoscaler."""
        status = dict.fromkeys(("replicas", "updatedReplicas", "availableReplicas"), 2)
        self.objects[f"{namespace}/deployment/{deployment}"] = {
            "metadata": {"uid": deployment, "generation": 1},
            "spec": {"replicas": 2, "template": template(model, annotation)},
            "status": {**status, "observedGeneration": 1},
        }
        scaler = {"metadata": {}, "spec": {"minReplicas": 2, "maxReplicas": 6}}
        self.objects[f"{namespace}/horizontalpodautoscaler/{deployment}"] = scaler
        self.save()

    def keep_revisions(self, deployment: str, *models: str) -> None:
        """Create the ReplicaSets of a Deployment object, the newest first."""
        self.objects["replicasets"] = [
            {
                "metadata": {
                    "name": f"{deployment}-{number}",
                    "ownerReferences": [{"uid": deployment}],
                    "annotations": {"deployment.kubernetes.io/revision": str(number)},
                },
                "spec": {"template": template(model)},
            }
            for number, model in zip(range(len(models), 0, -1), models, strict=True)
        ]
        self.save()

    def commands(self) -> list[tuple[list[str], Any]]:
        """Return the commands that change the cluster, each with the object in its stdin."""
        record = self.directory / "record.jsonl"
        lines = record.read_text().splitlines() if record.exists() else []
        return [(arguments, parsed(stdin)) for arguments, stdin in map(json.loads, lines)]


def parsed(stdin: str) -> Any:
    try:
        return json.loads(stdin)
    except ValueError:
        return None  # the namespace, which is YAML


def template(model: str, annotation: str = annotations.MODEL) -> dict[str, Any]:
    """Return a pod template; without a model one without annotations."""
    return {
        "metadata": {"labels": {}, "annotations": {annotation: model} if model else {}},
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


def manifests(namespace: str, model: str = "iris", existing_name: str | None = None) -> Manifests:
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
        existing_name=existing_name,
    )


each_annotation = pytest.mark.parametrize(
    "annotation", [annotations.MODEL, former_name(annotations.MODEL)]
)


@pytest.mark.parametrize(
    ("deployed", "model", "name"),
    [
        ({}, "iris", "iris-model-load"),
        ({"iris-model-load": "iris/1"}, "iris", "iris-model-load"),
        ({}, "my-model", SHARED),
        ({SHARED: "my-model/3"}, "my-model", SHARED),
        # `kubectl apply -k` creates a deployment without annotations.
        ({SHARED: ""}, "my-model", SHARED),
        ({}, "my_model", HASHED),
        ({SHARED: "my_model/1"}, "my_model", SHARED),
        ({SHARED: "my-model/1"}, "my_model", HASHED),
        ({SHARED: "my_model/1"}, "my.model", deployment_name("my.model", "model_load")),
        ({SHARED: ""}, "my_model", HASHED),
        (
            {SHARED: "my_model/1", HASHED: "my_model/2"},
            "my_model",
            HASHED,
        ),
    ],
)
@each_annotation
def test_a_deployment_is_found_by_its_name_and_its_annotation(
    cluster: Cluster, deployed: dict[str, str], model: str, name: str, annotation: str
) -> None:
    for deployment, running in deployed.items():
        cluster.deploy(deployment, running, annotation=annotation)

    assert find_deployment(NAMESPACE, model, "model_load") == name


@each_annotation
def test_a_name_that_belongs_to_another_model_is_rejected(
    cluster: Cluster, annotation: str
) -> None:
    """Deploying my-model must not replace the my_model that an earlier version deployed."""
    cluster.deploy(SHARED, "my_model/1", annotation=annotation)

    with pytest.raises(
        ReleaseError, match=r"expected a deployment of my-model, got a deployment of my_model"
    ):
        find_deployment(NAMESPACE, "my-model", "model_load")


def command(name: str, model: str, directory: Path) -> str:
    """Run a command for a model; return its output."""
    options = [f"--model=models/{model}/1", "--mode=model_load", f"--namespace={NAMESPACE}"]
    options += [] if name == "destroy" else ["--store=models"]
    process = subprocess.run(
        [sys.executable, "-m", "release", name, *options],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in process.stderr
    return process.stdout + process.stderr


# The model of the deployment with the shared name, and the deployment that commands for my_model
# must use.
each_owner = pytest.mark.parametrize(
    ("owner", "expected"),
    [("my_model", SHARED), ("my-model", HASHED)],
)


@each_owner
@pytest.mark.parametrize("name", ["rollback", "promote", "abort"])
def test_commands_use_the_deployment_of_an_earlier_version_only_for_its_model(
    cluster: Cluster, owner: str, expected: str, name: str
) -> None:
    """Each command fails here, and its error names the deployment."""
    cluster.deploy(SHARED, f"{owner}/1")
    cluster.keep_revisions(SHARED, f"{owner}/1")

    output = command(name, "my_model", cluster.directory)

    names = (SHARED, HASHED)
    assert [name for name in names if name in output] == [expected]
    assert cluster.commands() == []


@each_owner
def test_deploy_updates_the_deployment_of_an_earlier_version_in_place(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, owner: str, expected: str
) -> None:
    """The command fails when it checks predictions, because this cluster has no pods."""
    cluster.deploy(SHARED, f"{owner}/1")
    cluster.deploy(expected, "my_model/1")
    monkeypatch.setattr(ReleaseImages, "of", lambda *_: None)
    monkeypatch.setattr(commands, "resolve_release", lambda *_: manifests(NAMESPACE, "my_model"))
    monkeypatch.setattr("release.kubernetes.deploy._PREDICTION_SECONDS", 0)

    with pytest.raises(SystemExit, match="expected replicas that predict, got none"):
        commands.deploy("model_load", Path("models/my_model/1"), "models", NAMESPACE, "", Path())

    (deployment,) = (stdin for (verb, *_), stdin in cluster.commands() if verb == "replace")
    assert deployment["metadata"]["name"] == expected


@each_owner
def test_destroy_deletes_only_the_deployment_of_the_model(
    cluster: Cluster, owner: str, expected: str
) -> None:
    cluster.deploy(SHARED, f"{owner}/1")

    command("destroy", "my_model", cluster.directory)

    ((arguments, _),) = cluster.commands()
    assert f"--selector=app.kubernetes.io/instance={expected}" in arguments


def test_destroy_keeps_the_volumes_of_other_namespaces(cluster: Cluster) -> None:
    """Volumes have no namespace, and deployments of the same name have the same labels."""
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


def test_a_rollback_skips_revisions_of_other_models(cluster: Cluster) -> None:
    """Earlier versions could replace one model by another."""
    cluster.deploy(SHARED, "my-model/3")
    cluster.keep_revisions(SHARED, "my-model/3", "my_model/1", "my-model/2")

    assert Track(NAMESPACE, SHARED).previous().model == "my-model/2"

    cluster.keep_revisions(SHARED, "my-model/3", "my_model/1")
    with pytest.raises(ReleaseError, match="no previous release"):
        Track(NAMESPACE, SHARED).previous()


@each_annotation
def test_a_rollback_restores_the_label_of_the_version(cluster: Cluster, annotation: str) -> None:
    """A template of an earlier version has no such label, but its annotation has the version."""
    cluster.deploy("iris-model-load", "iris/2")
    former = template("iris/1", annotation)

    Track(NAMESPACE, "iris-model-load").run(former)

    (((_, kind, *options), _),) = cluster.commands()
    (patch,) = (json.loads(item[8:]) for item in options if item.startswith("--patch="))
    assert kind == "deployment/iris-model-load"
    assert patch == [
        {"op": "replace", "path": "/spec/template", "value": former},
        {"op": "add", "path": "/metadata/labels/app.kubernetes.io~1version", "value": "1"},
    ]


@pytest.mark.parametrize(
    "annotation", [annotations.BEFORE_FRESH, former_name(annotations.BEFORE_FRESH)]
)
def test_a_fresh_replica_of_an_earlier_version_is_removed(
    cluster: Cluster, annotation: str
) -> None:
    """An earlier version may have started the canary that is promoted now."""
    cluster.deploy("iris-model-load", "iris/1")
    before = {"least": 2, "most": 6, "pods": []}
    scaler = cluster.objects[f"{NAMESPACE}/horizontalpodautoscaler/iris-model-load"]
    scaler["metadata"]["annotations"] = {annotation: json.dumps(before)}
    cluster.save()

    Track(NAMESPACE, "iris-model-load").remove_fresh()

    *_, (annotate, _) = cluster.commands()
    assert annotate[2:4] == ["inference.internal/before-fresh-", "inference/before-fresh-"]


def test_deploy_prints_the_resources_and_where_they_come_from(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.deploy("iris-model-load", "iris/1")

    apply(replace(manifests(NAMESPACE), memory="512Mi"), "stable")

    assert capsys.readouterr().out.splitlines() == [
        "memory: 512Mi (MEMORY=)",
        "model volume: 1024Mi (computed from the model's size)",
    ]
    (deployment,) = (stdin for (verb, *_), stdin in cluster.commands() if verb == "replace")
    (server,) = deployment["spec"]["template"]["spec"]["containers"]
    assert server["resources"]["limits"] == {"memory": "512Mi"}


def applied_volumes(cluster: Cluster) -> set[str]:
    """Return the names of the applied volume and of the volume in its claim."""
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
def test_volumes_of_two_namespaces_have_different_names(
    cluster: Cluster, namespace: str, model: str, volume: str
) -> None:
    cluster.deploy(f"{model}-model-load", f"{model}/1", namespace)

    apply(manifests(namespace, model), "stable")

    assert applied_volumes(cluster) == {volume}


def test_a_claim_keeps_the_volume_of_an_earlier_version(cluster: Cluster) -> None:
    """The volume of a claim is immutable: the cluster would reject another name."""
    cluster.deploy(SHARED, "my_model/1")
    claim = f"{NAMESPACE}/persistentvolumeclaim/{SHARED}-store"
    cluster.objects[claim] = {"spec": {"volumeName": f"{NAMESPACE}-{SHARED}-store"}}
    cluster.save()

    apply(manifests(NAMESPACE, "my_model", existing_name=SHARED), "stable")

    assert applied_volumes(cluster) == {f"{NAMESPACE}-{SHARED}-store"}
