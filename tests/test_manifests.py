"""The rendered manifests of every overlay with every combination of components.

Their settings, ports, and paths are compared with the server: its settings class, a running
process, and its Dockerfile.
"""

import copy
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from artifact.verify import sha256_of
from model_in_image.source import ModelInImageSettings
from model_load.settings import ModelLoadSettings
from release.kubernetes.annotations import CONTRACT_SHA256, IMAGE_ID, MODEL, SOURCE
from serving.settings import Settings
from tests.manifests import (
    CANARY,
    COMBINATIONS,
    COMPONENTS,
    K8S,
    OVERLAYS,
    ROOT,
    SERVERS,
    A,
    B,
    Object,
    Release,
    containers,
    environment,
    keys,
    mode_of,
    mounted,
    named,
    of_kind,
    only,
    pod_of,
    quantity,
    render,
    render_folder,
    server_of,
    variables,
)
from tests.pod_security import violations
from tests.servers import MODES, Start

# In one process, so that each combination is rendered once.
pytestmark = pytest.mark.xdist_group("manifests")

MINORS = ("1.34", "1.35", "1.36", "1.37")
SETTINGS: dict[str, type[Settings]] = {
    settings.mode: settings for settings in (ModelInImageSettings, ModelLoadSettings)
}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
# Each track has its own; both tracks share all other objects.
KINDS_OF_A_TRACK = ("Deployment", "HorizontalPodAutoscaler")
OTHER_MODEL = Release("1", "a", model="digits")
# Names that Kubernetes rejects or that become equal, and `my-model`, which is valid.
UNUSUAL_MODELS = ("my_model", "my.model", "my-model", "7seas", "y" * 63)
DNS_LABEL = r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?"
# The labels in every selector. A Deployment's has the track as well.
SELECTOR = ("app.kubernetes.io/component", "app.kubernetes.io/instance")
MONITORING = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}

each_overlay = pytest.mark.parametrize("overlay", SERVERS)


@pytest.fixture(params=COMBINATIONS, ids=lambda components: "+".join(components) or "stable")
def components(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Each combination of components in turn."""
    combination: tuple[str, ...] = request.param
    return combination


@pytest.fixture(params=SERVERS)
def overlay(request: pytest.FixtureRequest) -> str:
    """Each overlay of a server in turn."""
    return str(request.param)


@pytest.fixture
def objects(overlay: str, components: tuple[str, ...]) -> list[Object]:
    """The objects of a release with an overlay."""
    return render(overlay, components)


@pytest.fixture
def deployment(objects: list[Object]) -> Any:
    return only(objects, "Deployment")


@pytest.fixture
def pod(objects: list[Object]) -> Any:
    """The spec of the Deployment's pods."""
    return pod_of(objects)


@functools.cache
def validate(text: str, minor: str) -> str:
    """Validate an object, as JSON, with the schema of a Kubernetes minor; return that minor.

    Cached, because most objects are the same in several overlays.
    """
    return str(kubernetes_validate.validate(json.loads(text), minor, strict=True))


def image_environment(mode: str) -> dict[str, str]:
    """Return the settings in the environment of an image."""
    lines = (ROOT / f"Dockerfile.{mode}").read_text(encoding="utf-8").splitlines()
    instructions = [line for line in lines if line.startswith("ENV ")]
    values = dict(re.findall(r"(\w+)=(\S+)", " ".join(instructions)))
    return {name: value for name, value in values.items() if name in settings_of(mode)}


def settings_of(mode: str) -> set[str]:
    return {name.upper() for name in SETTINGS[mode].model_fields}


def labels_of_pods(objects: list[Object]) -> dict[str, str]:
    labels: dict[str, str] = only(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    return labels


def selectors(objects: list[Object]) -> dict[str, dict[str, str]]:
    """Return the selectors of the objects that both tracks share."""
    return {
        "Service": only(objects, "Service")["spec"]["selector"],
        "PodDisruptionBudget": only(objects, "PodDisruptionBudget")["spec"]["selector"][
            "matchLabels"
        ],
        "NetworkPolicy": only(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    }


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return selector.items() <= labels.items()


# ---- All objects


def test_overlays_and_components_are_found() -> None:
    """The tests below iterate over them: without any, those tests would pass."""
    assert {mode_of(overlay) for overlay in SERVERS} == set(MODES)
    assert set(OVERLAYS) - set(SERVERS) == {"monitoring", "namespace"}
    assert CANARY in COMPONENTS
    assert {(), (CANARY,)} <= set(COMBINATIONS)


@pytest.mark.parametrize("minor", MINORS)
@pytest.mark.parametrize("folder", OVERLAYS)
def test_every_minor_of_kubernetes_knows_every_field(
    folder: str, components: tuple[str, ...], minor: str
) -> None:
    """The API server drops a misspelt field silently, and with it the protection it gives."""
    for item in render(folder, components):
        assert validate(json.dumps(item), minor) == minor


def test_the_validation_rejects_a_misspelt_field() -> None:
    misspelt = copy.deepcopy(only(render(SERVERS[0]), "Deployment"))
    misspelt["spec"]["template"]["spec"]["readOnlyRootFileSystem"] = True

    with pytest.raises(kubernetes_validate.ValidationError, match="readOnlyRootFileSystem"):
        validate(json.dumps(misspelt), MINORS[-1])


def test_the_namespace_admits_only_restricted_pods() -> None:
    labels = only(render("namespace"), "Namespace")["metadata"]["labels"]

    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_names_are_dns_labels(objects: list[Object]) -> None:
    """Required for the name of a Service, and the names of pods start with a Deployment's."""
    for item in objects:
        assert re.fullmatch(DNS_LABEL, item["metadata"]["name"]), item


def test_names_of_objects_are_unique(objects: list[Object]) -> None:
    identities = [identity(item) for item in objects]

    assert len(identities) == len(set(identities))


def test_objects_have_the_recommended_labels(overlay: str) -> None:
    """https://kubernetes.io/docs/concepts/overview/working-with-objects/common-labels/."""
    for item in render(overlay):
        labels = item["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "inference"
        assert labels["app.kubernetes.io/instance"] == name_of(render(overlay))
        assert labels["app.kubernetes.io/component"] == mode_of(overlay).replace("_", "-")
        assert labels["app.kubernetes.io/part-of"] == "inference"
        assert labels["app.kubernetes.io/managed-by"] == "inference"


@pytest.mark.parametrize(("release", "version"), [(A, "1"), (B, "2")])
def test_the_deployment_and_its_pods_have_the_version_of_the_model(
    overlay: str, release: Release, version: str
) -> None:
    """Not in a selector: selectors are immutable, and an update would be rejected."""
    objects = render(overlay, (), release)
    label = "app.kubernetes.io/version"

    assert only(objects, "Deployment")["metadata"]["labels"][label] == version
    assert labels_of_pods(objects)[label] == version
    assert label not in json.dumps([selectors(objects), deployment_selector(objects)])


def test_annotations_have_their_current_and_their_former_names(deployment: Any) -> None:
    """Scripts read the former names, and so does an earlier version of this project."""
    values = deployment["spec"]["template"]["metadata"]["annotations"]

    for name in (MODEL, CONTRACT_SHA256, IMAGE_ID, SOURCE):
        assert name.startswith("inference.internal/")
        assert values[name] == values[f"inference/{name.partition('/')[2]}"]


# ---- Folders that are applied without `make deploy`


@pytest.mark.parametrize("folder", ["base", "model_load/server", *SERVERS])
def test_a_folder_that_is_applied_alone_selects_only_its_own_pods(folder: str) -> None:
    """An empty selector of a Service or a NetworkPolicy selects every pod of the namespace."""
    objects = render_folder(folder)
    pods = labels_of_pods(objects)
    constraints = pod_of(objects)["topologySpreadConstraints"]

    for selector in (
        *selectors(objects).values(),
        *(constraint["labelSelector"]["matchLabels"] for constraint in constraints),
    ):
        assert selector.keys() == set(SELECTOR)
        assert matches(selector, pods)
    assert deployment_selector(objects).keys() == {*SELECTOR, "track"}
    for other in {"base", *SERVERS}:
        if mode_or_base(other) != mode_or_base(folder):
            assert not matches(selectors(objects)["Service"], labels_of_pods(render_folder(other)))


@pytest.mark.parametrize("folder", ["base", "model_load/server", *SERVERS])
def test_names_in_a_folder_are_whole_and_can_be_found_with_grep(folder: str) -> None:
    """They are the names in the cluster, except for the model's name in front."""
    files = [file.read_text(encoding="utf-8") for file in K8S.rglob("*.yaml")]
    for item in render_folder(folder):
        name = item["metadata"]["name"]
        assert name.startswith(mode_or_base(folder).replace("_", "-"))
        assert any(re.search(rf"\b(name|value): {name}$", text, re.MULTILINE) for text in files)


def mode_or_base(folder: str) -> str:
    return "model_server" if folder == "base" else mode_of(folder)


def test_the_base_has_no_value_that_a_release_computes() -> None:
    text = json.dumps([render_folder(folder) for folder in ("base", *SERVERS)])
    servers = [server_of(pod_of(render_folder(folder))) for folder in SERVERS]

    assert "sizeLimit" not in text
    assert [server["resources"] for server in servers] == [{"requests": {"cpu": "250m"}}] * len(
        servers
    )


# ---- Names and references


def identity(item: Object) -> tuple[str, str]:
    return item["kind"], item["metadata"]["name"]


def name_of(objects: list[Object]) -> str:
    return str(only(objects, "Service")["metadata"]["name"])


def deployment_selector(objects: list[Object]) -> dict[str, str]:
    labels: dict[str, str] = only(objects, "Deployment")["spec"]["selector"]["matchLabels"]
    return labels


def references(objects: list[Object]) -> set[tuple[str, str]]:
    """Return the kind and the name of each object to which another object refers."""
    pod, scaler = pod_of(objects), only(objects, "HorizontalPodAutoscaler")
    claims = [
        volume["persistentVolumeClaim"]
        for volume in pod.get("volumes", ())
        if "persistentVolumeClaim" in volume
    ]
    return {
        ("ServiceAccount", pod["serviceAccountName"]),
        ("Deployment", scaler["spec"]["scaleTargetRef"]["name"]),
        *(("PersistentVolumeClaim", claim["claimName"]) for claim in claims),
        *(
            ("PersistentVolume", claim["spec"]["volumeName"])
            for claim in of_kind(objects, "PersistentVolumeClaim")
        ),
    }


def test_references_name_objects_of_the_deployment(objects: list[Object]) -> None:
    """kustomize renames objects, but only those references that it knows."""
    referenced = references(objects)

    assert referenced <= {identity(item) for item in objects}
    claimed = any(kind == "PersistentVolumeClaim" for kind, _ in referenced)
    assert claimed or not of_kind(objects, "PersistentVolumeClaim")


# ---- Models of any name


@pytest.fixture
def releases(overlay: str, components: tuple[str, ...]) -> dict[str, list[Object]]:
    """The objects of a release of each unusual model, by the model."""
    return {
        model: render(overlay, components, Release("1", "a", model=model))
        for model in UNUSUAL_MODELS
    }


def test_models_of_any_name_have_valid_objects(releases: dict[str, list[Object]]) -> None:
    for objects in releases.values():
        assert references(objects) <= {identity(item) for item in objects}
        for item in objects:
            # A volume belongs to the whole cluster, so its name starts with the namespace.
            namespace = r"(models\.)?" if item["kind"] == "PersistentVolume" else ""
            assert re.fullmatch(namespace + DNS_LABEL, item["metadata"]["name"]), item
            assert validate(json.dumps(item), MINORS[-1]) == MINORS[-1]


def test_models_share_no_object(releases: dict[str, list[Object]]) -> None:
    """Deploying one model would replace the object of the other."""
    identities = [identity(item) for objects in releases.values() for item in objects]

    assert len(identities) == len(set(identities))


def test_selectors_select_the_pods_of_one_model(releases: dict[str, list[Object]]) -> None:
    for model, objects in releases.items():
        for selector in (deployment_selector(objects), *selectors(objects).values()):
            selected = {
                other
                for other, others in releases.items()
                if matches(selector, labels_of_pods(others))
            }
            assert selected == {model}


# ---- Tracks and selectors


def test_a_deployment_selects_its_own_pods(deployment: Any) -> None:
    spec = deployment["spec"]

    assert matches(spec["selector"]["matchLabels"], spec["template"]["metadata"]["labels"])


def test_selectors_are_those_of_earlier_versions(overlay: str, components: tuple[str, ...]) -> None:
    """Selectors are immutable: the cluster would reject an update with another one."""
    component = mode_of(overlay).replace("_", "-")
    shared = {
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/instance": f"iris-{component}",
    }
    objects = render(overlay, components)

    assert all(selector == shared for selector in selectors(objects).values())
    track = "canary" if CANARY in components else "stable"
    assert deployment_selector(objects) == {**shared, "track": track}


def test_no_deployment_selects_the_pods_of_the_other_track(overlay: str) -> None:
    """Otherwise both controllers would scale the same pods."""
    stable, canary = render(overlay), render(overlay, (CANARY,))

    for track, other in ((stable, canary), (canary, stable)):
        assert not matches(deployment_selector(track), labels_of_pods(other))


@pytest.mark.parametrize("kind", ["Service", "PodDisruptionBudget", "NetworkPolicy"])
def test_shared_objects_select_both_tracks_of_one_deployment(overlay: str, kind: str) -> None:
    """And neither another model nor the other mode."""
    selector = selectors(render(overlay))[kind]
    both = [render(overlay), render(overlay, (CANARY,), B)]
    others = [render(other, release=OTHER_MODEL) for other in SERVERS]
    others += [render(other) for other in SERVERS if mode_of(other) != mode_of(overlay)]

    assert all(matches(selector, labels_of_pods(objects)) for objects in both)
    assert not any(matches(selector, labels_of_pods(objects)) for objects in others)


def test_replicas_are_spread_over_nodes_and_zones(pod: Any, objects: list[Object]) -> None:
    """The failure of one node or zone must not end all replicas."""
    constraints = pod["topologySpreadConstraints"]

    assert {constraint["topologyKey"] for constraint in constraints} == {
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    }
    for constraint in constraints:
        assert constraint["labelSelector"]["matchLabels"]
        assert matches(constraint["labelSelector"]["matchLabels"], labels_of_pods(objects))


def test_tracks_differ_only_in_name_and_track(overlay: str) -> None:
    """The canary must behave as it will after the promotion."""
    stable = render(overlay)
    name = only(stable, "Deployment")["metadata"]["name"]

    def as_stable(item: Object) -> Any:
        if item["kind"] not in KINDS_OF_A_TRACK:
            return item
        text = json.dumps(item).replace('"track": "canary"', '"track": "stable"')
        return json.loads(text.replace(f'"{name}-canary"', f'"{name}"'))

    canary = render(overlay, (CANARY,))
    assert [as_stable(item) for item in canary] == stable
    assert only(canary, "Deployment")["metadata"]["name"] == f"{name}-canary"


def test_a_canary_changes_no_object_of_the_stable_track(overlay: str) -> None:
    """Both tracks share all objects except their Deployments and autoscalers."""
    stable, canary = (
        [
            item
            for item in render(overlay, components, release)
            if item["kind"] not in KINDS_OF_A_TRACK
        ]
        for components, release in (((), A), ((CANARY,), B))
    )

    assert canary == stable


def test_a_canary_has_no_value_of_the_stable_release(overlay: str) -> None:
    """A component that names a model would override the overlay's."""
    text = json.dumps(only(render(overlay, (CANARY,), B), "Deployment"))
    server = server_of(pod_of(render(overlay, (CANARY,), B)))

    assert re.findall(rf"{A.sha256}|iris[/-]1", text) == []
    assert server["image"] == f"{mode_of(overlay)}@sha256:{B.sha256}"
    assert text.count(B.sha256) >= 2  # its image and its contract
    # The model is in the image, or a path or another image names it.
    assert mode_of(overlay) == "model_in_image" or "iris/2" in text


def test_all_containers_have_the_image_of_the_release(pod: Any, overlay: str) -> None:
    """The code that verifies the model must be the code that serves it."""
    images = {container["image"] for container in containers(pod)}

    assert images == {f"{mode_of(overlay)}@sha256:{A.sha256}"}


def test_images_are_pulled_once(pod: Any) -> None:
    """An image of a release never changes, and scaling out must work without the registry."""
    assert {container["imagePullPolicy"] for container in containers(pod)} == {"IfNotPresent"}


# ---- Security


def test_pods_are_restricted(deployment: Any) -> None:
    """The namespace rejects other pods, which only an event of the ReplicaSet reports."""
    assert violations(deployment["spec"]["template"]) == []


def _unset(*path: str) -> Callable[[Any], None]:
    def change(pod: Any) -> None:
        *parents, last = path
        del functools.reduce(lambda tree, key: tree[key], parents, pod)[last]

    return change


def _put(part: str, **fields: Any) -> Callable[[Any], None]:
    def change(pod: Any) -> None:
        targets = {
            "pod": pod,
            "pod context": pod["securityContext"],
            "server": pod["containers"][0],
            "server context": pod["containers"][0]["securityContext"],
            "init": pod["initContainers"][0],
            "init context": pod["initContainers"][0]["securityContext"],
        }
        targets[part].update(fields)

    return change


@pytest.mark.parametrize(
    "change",
    [
        _put("pod", hostNetwork=True),
        _put("pod", hostPID=True),
        _put("pod", hostIPC=True),
        _put("pod", volumes=[{"name": "host", "hostPath": {"path": "/"}}]),
        _put("pod", volumes=[{"name": "nfs", "nfs": {"server": "x", "path": "/"}}]),
        _unset("securityContext", "runAsNonRoot"),
        _unset("securityContext", "seccompProfile"),
        _put("pod context", runAsUser=0),
        _put("pod context", sysctls=[{"name": "kernel.msgmax", "value": "1"}]),
        _put("pod context", seccompProfile={"type": "Unconfined"}),
        _put("pod context", seLinuxOptions={"role": "sysadm_r"}),
        _put("pod context", windowsOptions={"hostProcess": True}),
        _put("server", ports=[{"containerPort": 8000, "hostPort": 80}]),
        _put("server", readinessProbe={"httpGet": {"host": "example.com", "port": 80}}),
        _put("server", lifecycle={"preStop": {"httpGet": {"host": "example.com", "port": 80}}}),
        _put("server", securityContext={}),
        _put("server context", privileged=True),
        _put("server context", allowPrivilegeEscalation=True),
        _put("server context", capabilities={"drop": ["CHOWN"]}),
        _put("server context", capabilities={"drop": ["ALL"], "add": ["NET_ADMIN"]}),
        _put("server context", procMount="Unmasked"),
        _put("server context", runAsNonRoot=False),
        _put("server context", seccompProfile={"type": "Unconfined"}),
        _put("server context", appArmorProfile={"type": "Unconfined"}),
        _put("server context", seLinuxOptions={"type": "spc_t"}),
        _put("init context", allowPrivilegeEscalation=True),
        _put("init context", runAsUser=0),
        _put("init", securityContext={}),
    ],
)
def test_the_check_of_restricted_pods_finds_violations(change: Callable[[Any], None]) -> None:
    template = copy.deepcopy(only(render("model_load/bucket"), "Deployment")["spec"]["template"])
    change(template["spec"])

    assert violations(template) != []


def test_root_file_systems_are_read_only(pod: Any) -> None:
    for container in containers(pod):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_pods_have_no_token_for_the_kubernetes_api(pod: Any, objects: list[Object]) -> None:
    """The server never calls the API, so an attacker must not be able to."""
    assert pod["automountServiceAccountToken"] is False
    assert only(objects, "ServiceAccount")["automountServiceAccountToken"] is False


def test_services_add_no_environment_variables(pod: Any) -> None:
    """A Service named `model-load` would add MODEL_LOAD_PORT=tcp://…."""
    assert pod["enableServiceLinks"] is False


def test_only_the_pull_from_a_bucket_gets_a_secret(overlay: str, objects: list[Object]) -> None:
    """Not the server, which clients reach, and not the pod, which shares it with the server."""
    secrets = [
        (item["kind"], *path)
        for item in objects
        for path in keys(item)
        if "secret" in str(path[-1]).lower()
    ]
    pull = ("Deployment", "spec", "template", "spec", "initContainers", 0, "envFrom", 0)

    assert secrets == ([(*pull, "secretRef")] if overlay == "model_load/bucket" else [])
    assert not any("envFrom" in container for container in pod_of(objects)["containers"])


def test_traffic_is_denied_by_default(objects: list[Object]) -> None:
    policy = only(objects, "NetworkPolicy")["spec"]

    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert matches(policy["podSelector"]["matchLabels"], labels_of_pods(objects))
    # A rule without ports allows every port.
    for rule in policy["ingress"]:
        assert [list(port) for port in rule["ports"]] == [["port"]] * len(rule["ports"])


def test_the_management_port_is_open_only_to_monitoring(objects: list[Object]) -> None:
    """Its list of library versions tells an attacker which vulnerabilities to try."""
    rules = only(objects, "NetworkPolicy")["spec"]["ingress"]
    admitted: dict[str, list[Any]] = {}
    for rule in rules:
        for port in rule["ports"]:
            admitted.setdefault(port["port"], []).extend(rule.get("from", ["anywhere"]))

    assert admitted.keys() == {"http", "management"}
    assert admitted["management"] == [MONITORING]


def test_only_a_pull_from_a_bucket_opens_connections(overlay: str, objects: list[Object]) -> None:
    egress = only(objects, "NetworkPolicy")["spec"]["egress"]

    assert bool(egress) == (overlay == "model_load/bucket")
    for rule in egress:
        assert rule["ports"]


# ---- Ports, probes and settings, against the server


def test_declared_ports_are_those_of_the_server(pod: Any, overlay: str) -> None:
    server = server_of(pod)
    numbers = {port["name"]: port["containerPort"] for port in server["ports"]}

    assert numbers == {
        "http": int(image_environment(mode_of(overlay))["PORT"]),
        "management": int(variables(server)["MANAGEMENT_PORT"]["value"]),
    }


def test_the_service_routes_to_the_port_of_predictions(objects: list[Object], pod: Any) -> None:
    ports = only(objects, "Service")["spec"]["ports"]

    assert [port["targetPort"] for port in ports] == ["http"]
    assert named(server_of(pod)["ports"], "http")


def test_every_probe_uses_a_declared_port(pod: Any) -> None:
    server = server_of(pod)
    declared = {port["name"] for port in server["ports"]}

    for probe in PROBES:
        assert server[probe]["httpGet"]["port"] in declared
        assert server[probe].get("httpGet", {}).keys() == {"path", "port"}


def test_the_server_answers_the_probes(server: Start, mode: str) -> None:
    """A probe with a wrong path or port would restart healthy pods for ever."""
    running = server(MANAGEMENT_PORT="0").wait_until_ready()
    assert running.management_url is not None
    urls = {"http": running.url, "management": running.management_url}
    probes = [
        server_of(pod_of(render(overlay)))[probe]["httpGet"]
        for overlay in SERVERS
        if mode_of(overlay) == mode
        for probe in PROBES
    ]

    targets = {(probe["port"], probe["path"]) for probe in probes}
    assert targets
    for port, path in targets:
        assert httpx.get(urls[port] + path).status_code == 200
    assert {name: httpx.get(f"{url}/metrics").status_code for name, url in urls.items()} == {
        "http": 404,
        "management": 200,
    }
    assert {name: httpx.get(f"{url}/predict/test").status_code for name, url in urls.items()} == {
        "http": 200,
        "management": 404,
    }


def test_readiness_depends_on_the_golden_rows_and_liveness_does_not(pod: Any) -> None:
    """A pod with a bad model must leave the Service; a restart would not repair it."""
    server = server_of(pod)

    assert {probe: server[probe]["httpGet"]["path"].rpartition("/")[2] for probe in PROBES} == {
        "startupProbe": "ready",
        "readinessProbe": "ready",
        "livenessProbe": "live",
    }


def test_every_variable_is_a_setting(pod: Any, overlay: str) -> None:
    """Servers ignore unknown variables, so a misspelt setting would have no effect."""
    for container in containers(pod):
        assert variables(container).keys() <= settings_of(mode_of(overlay))
        assert len(variables(container)) == len(container["env"])


def test_settings_are_accepted_as_the_kubelet_writes_them(
    deployment: Any, overlay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together with the variables of the image: one invalid value and no pod starts."""
    mode, template = mode_of(overlay), deployment["spec"]["template"]
    for container in containers(template["spec"]):
        values = environment(template, container)
        monkeypatch.setattr(os, "environ", image_environment(mode) | values)

        settings = SETTINGS[mode].from_environment().model_dump(mode="json")

        assert {name: str(settings[name.lower()]) for name in values} == values
        assert settings["contract_sha256"] == A.sha256
        # Exactly one source of the model; model_in_image has it from the image.
        assert bool(settings.get("model_uri")) != bool(settings["model_dir"])


def test_workers_follow_the_requested_cores(deployment: Any) -> None:
    template = copy.deepcopy(deployment["spec"]["template"])
    server = server_of(template["spec"])

    assert environment(template, server)["WORKERS"] == "1"
    server["resources"]["requests"]["cpu"] = "2500m"
    assert environment(template, server)["WORKERS"] == "3"


# ---- The location of the model


def test_mounts_and_volumes_match(pod: Any) -> None:
    volumes = {volume["name"] for volume in pod.get("volumes", ())}
    mounts = {
        mount["name"]
        for container in containers(pod)
        for mount in container.get("volumeMounts", ())
    }

    assert mounts == volumes


@each_overlay
def test_the_server_reads_the_model_where_it_is_stored_and_cannot_change_it(overlay: str) -> None:
    """By the pull, in the image, or in a mounted image."""
    pod = pod_of(render(overlay))
    directory = variables(server_of(pod)).get("MODEL_DIR")
    if directory is None:
        assert "MODEL_DIR" in image_environment(mode_of(overlay))
        return
    location = mounted(server_of(pod), directory["value"])
    assert location is not None
    mount, path = location
    assert mount["readOnly"] is True
    if "initContainers" not in pod:
        # The path in an image of `make build-model`.
        assert path == "models/iris/1"
        return
    pull = named(pod["initContainers"], "pull")
    target = mounted(pull, pull["args"][-1])
    assert target is not None
    assert (target[0]["name"], target[1]) == (mount["name"], path)
    assert not target[0].get("readOnly")


@each_overlay
def test_a_store_on_a_volume_is_mounted_read_only(overlay: str) -> None:
    """All deployments share the store."""
    pulls = pod_of(render(overlay)).get("initContainers", ())
    for uri in (variables(pull)["MODEL_URI"]["value"] for pull in pulls):
        if uri.startswith("/"):
            location = mounted(pulls[0], uri)
            assert location is not None
            assert location[0]["readOnly"] is True
            assert location[1] == "iris/1"


def test_the_command_of_init_containers_works(store: Path, tmp_path: Path) -> None:
    """The command of the manifests runs here, except for the directory."""
    commands = {
        (mode_of(overlay), *container["args"])
        for overlay in SERVERS
        for container in pod_of(render(overlay)).get("initContainers", ())
    }
    assert commands
    for number, (mode, *arguments) in enumerate(sorted(commands)):
        directory = tmp_path / str(number)
        directory.mkdir()
        local = [str(directory) if item.startswith("/") else item for item in arguments]
        artifact = store / "iris" / "1"
        process = subprocess.run(
            [sys.executable, "-m", mode, *local],
            env={
                "PATH": os.environ["PATH"],
                "MODEL_URI": str(artifact),
                "CONTRACT_SHA256": sha256_of(artifact / "contract.json"),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

        assert process.returncode == 0, process.stderr
        assert sorted(path.name for path in directory.iterdir()) == ["contract.json", "model.onnx"]


def test_the_volume_is_the_folder_that_kind_mounts() -> None:
    """That folder is the model store of `make train`."""
    volume = only(render("model_load/volume"), "PersistentVolume")
    cluster = yaml.safe_load((K8S / "kind.yaml").read_text(encoding="utf-8"))

    assert [node["extraMounts"] for node in cluster["nodes"]] == [
        [
            {
                "hostPath": default("STORE"),
                "containerPath": volume["spec"]["hostPath"]["path"],
                "readOnly": True,
            }
        ]
    ] * len(cluster["nodes"])


# ---- Rollouts


def test_a_rollout_never_falls_below_its_capacity(deployment: Any) -> None:
    update = deployment["spec"]["strategy"]["rollingUpdate"]

    assert update["maxUnavailable"] == 0
    assert update["maxSurge"]


def test_the_grace_period_covers_the_pause_and_the_drain(pod: Any, overlay: str) -> None:
    """Otherwise the kubelet kills a server that still answers requests."""
    server = server_of(pod)
    drain = SETTINGS[mode_of(overlay)].model_fields["drain_seconds"].default
    if "DRAIN_SECONDS" in variables(server):
        drain = int(variables(server)["DRAIN_SECONDS"]["value"])

    assert pod["terminationGracePeriodSeconds"] >= _pause_seconds(server) + drain


def _pause_seconds(server: Any) -> int:
    (seconds,) = re.findall(r"sleep (\d+)", server["lifecycle"]["preStop"]["exec"]["command"][-1])
    return int(seconds)


def test_the_pre_stop_hook_closes_connections_and_keeps_serving(server: Start, mode: str) -> None:
    """The hook of the manifests runs here, with another process ID than 1."""
    hooks = {
        tuple(server_of(pod_of(render(overlay)))["lifecycle"]["preStop"]["exec"]["command"])
        for overlay in SERVERS
        if mode_of(overlay) == mode
    }
    ((*shell, script),) = hooks
    running = server().wait_until_ready()

    assert re.search(r"sleep [1-9]", script)
    script = re.sub(r"sleep \d+", "true", script)
    subprocess.run([*shell, re.sub(r"\b1\b", str(running.process.pid), script)], check=True)

    with httpx.Client(base_url=running.url, timeout=20) as client:
        responses = [client.get("/health")]
        while "connection" not in responses[-1].headers and len(responses) < 1000:
            responses.append(client.get("/health"))
    assert responses[-1].headers["connection"] == "close"
    assert {response.status_code for response in responses} == {200}
    assert running.process.poll() is None


def test_the_autoscaler_owns_the_replicas(objects: list[Object], deployment: Any) -> None:
    """A number in the Deployment would reset the replicas with each release."""
    autoscaler = only(objects, "HorizontalPodAutoscaler")["spec"]

    assert "replicas" not in deployment["spec"]
    assert autoscaler["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    assert 2 <= autoscaler["minReplicas"] < autoscaler["maxReplicas"]


def test_the_autoscaler_measures_a_resource_that_the_container_requests(
    objects: list[Object], pod: Any
) -> None:
    """Utilization is relative to the request; without a request nothing is measured."""
    for metric in only(objects, "HorizontalPodAutoscaler")["spec"]["metrics"]:
        measured = metric["containerResource"]
        requests = named(pod["containers"], measured["container"])["resources"]["requests"]
        assert measured["name"] in requests


def test_draining_a_node_never_evicts_the_last_replica(objects: list[Object]) -> None:
    budget = only(objects, "PodDisruptionBudget")["spec"]
    min_replicas = only(objects, "HorizontalPodAutoscaler")["spec"]["minReplicas"]

    assert 1 <= budget["maxUnavailable"] < min_replicas


def test_every_container_has_a_memory_limit_and_requests_cpu(pod: Any) -> None:
    """Without a limit it can exhaust the node; without a request it gets no CPU on a busy node."""
    for container in containers(pod):
        resources = container["resources"]
        assert quantity(resources["requests"]["cpu"]) > 0
        memory = quantity(resources["limits"]["memory"])
        assert memory >= quantity(resources["requests"]["memory"]) > 0
        assert "cpu" not in resources["limits"]  # it would throttle while the node is idle


def test_a_slow_start_does_not_fail_the_rollout(deployment: Any, pod: Any) -> None:
    """The deadline of the rollout must be longer than the time that a pod has to become ready."""
    probe = server_of(pod)["startupProbe"]

    budget = probe["periodSeconds"] * probe["failureThreshold"] + probe.get(
        "initialDelaySeconds", 0
    )
    if "initContainers" in pod:
        budget += ModelLoadSettings.model_fields["model_pull_seconds"].default
    assert (
        budget + deployment["spec"]["minReadySeconds"]
        < (deployment["spec"]["progressDeadlineSeconds"])
    )


def test_prune_keeps_as_many_images_as_a_rollback_needs(deployment: Any) -> None:
    assert deployment["spec"]["revisionHistoryLimit"] == int(default("KEEP"))


def default(variable: str) -> str:
    """Return the default of a variable in the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (value,) = re.findall(rf"^{variable} \??= *(.+)$", makefile, re.MULTILINE)
    return str(value)
