"""What k8s/ applies: for every overlay and every combination of components, each a release.

What the manifests say of the server is compared with the server: its settings class, a
process of it, its Dockerfile.
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
    server_of,
    variables,
)
from tests.pod_security import violations
from tests.servers import MODES, Start

# In one process, which renders each combination once.
pytestmark = pytest.mark.xdist_group("manifests")

MINORS = ("1.34", "1.35", "1.36", "1.37")
SETTINGS: dict[str, type[Settings]] = {
    settings.mode: settings for settings in (ModelInImageSettings, ModelLoadSettings)
}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
# Of these each track has its own; the rest is shared.
OF_A_TRACK = ("Deployment", "HorizontalPodAutoscaler")
OTHER_MODEL = Release("1", "a", model="digits")
# Models whose names Kubernetes would refuse or confuse, and one that is as it should be.
UNUSUAL_MODELS = ("my_model", "my.model", "my-model", "7seas", "y" * 63)
DNS_LABEL = r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?"
MONITORING = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}

each_overlay = pytest.mark.parametrize("overlay", SERVERS)


@pytest.fixture(params=COMBINATIONS, ids=lambda chosen: "+".join(chosen) or "stable")
def components(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Each combination of components in turn."""
    chosen: tuple[str, ...] = request.param
    return chosen


@pytest.fixture(params=SERVERS)
def overlay(request: pytest.FixtureRequest) -> str:
    """Each overlay of a server in turn."""
    return str(request.param)


@pytest.fixture
def objects(overlay: str, components: tuple[str, ...]) -> list[Object]:
    """What a release of an overlay applies."""
    return render(overlay, components)


@pytest.fixture
def deployment(objects: list[Object]) -> Any:
    return only(objects, "Deployment")


@pytest.fixture
def pod(objects: list[Object]) -> Any:
    """The spec of the Deployment's pods."""
    return pod_of(objects)


@functools.cache
def validate(written: str, minor: str) -> str:
    """The minor of Kubernetes against whose schema an object, as JSON, was found valid.

    Cached, for most objects are the same in several overlays.
    """
    return str(kubernetes_validate.validate(json.loads(written), minor, strict=True))


def image_environment(mode: str) -> dict[str, str]:
    """What the image sets, of what is a setting."""
    lines = (ROOT / f"Dockerfile.{mode}").read_text(encoding="utf-8").splitlines()
    told = [line for line in lines if line.startswith("ENV ")]
    found = dict(re.findall(r"(\w+)=(\S+)", " ".join(told)))
    return {name: value for name, value in found.items() if name in settings_of(mode)}


def settings_of(mode: str) -> set[str]:
    return {name.upper() for name in SETTINGS[mode].model_fields}


def labels_of_pods(objects: list[Object]) -> dict[str, str]:
    labels: dict[str, str] = only(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    return labels


def selectors(objects: list[Object]) -> dict[str, dict[str, str]]:
    """The selectors of what both tracks share."""
    return {
        "Service": only(objects, "Service")["spec"]["selector"],
        "PodDisruptionBudget": only(objects, "PodDisruptionBudget")["spec"]["selector"][
            "matchLabels"
        ],
        "NetworkPolicy": only(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    }


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return selector.items() <= labels.items()


# ---- What there is


def test_overlays_and_components_are_found() -> None:
    """They are found in the folders; were none found, no test below would say anything."""
    assert {mode_of(overlay) for overlay in SERVERS} == set(MODES)
    assert set(OVERLAYS) - set(SERVERS) == {"monitoring", "namespace"}
    assert CANARY in COMPONENTS
    assert {(), (CANARY,)} <= set(COMBINATIONS)


@pytest.mark.parametrize("minor", MINORS)
@pytest.mark.parametrize("folder", OVERLAYS)
def test_every_minor_of_kubernetes_knows_every_field(
    folder: str, components: tuple[str, ...], minor: str
) -> None:
    """Strictly: a misspelt field would be dropped in silence, and what it protects with it."""
    for one in render(folder, components):
        assert validate(json.dumps(one), minor) == minor


def test_the_validation_refuses_a_misspelt_field() -> None:
    misspelt = copy.deepcopy(only(render(SERVERS[0]), "Deployment"))
    misspelt["spec"]["template"]["spec"]["readOnlyRootFileSystem"] = True

    with pytest.raises(kubernetes_validate.ValidationError, match="readOnlyRootFileSystem"):
        validate(json.dumps(misspelt), MINORS[-1])


def test_the_namespace_admits_restricted_pods_only() -> None:
    labels = only(render("namespace"), "Namespace")["metadata"]["labels"]

    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_names_are_dns_labels(objects: list[Object]) -> None:
    """A Service's must be, and the names of pods are made of a Deployment's."""
    for one in objects:
        assert re.fullmatch(DNS_LABEL, one["metadata"]["name"]), one


def test_objects_are_named_once(objects: list[Object]) -> None:
    every = [(one["kind"], one["metadata"]["name"]) for one in objects]

    assert len(every) == len(set(every))


def references(objects: list[Object]) -> set[tuple[str, str]]:
    """The kind and the name of each object that others name."""
    pod, scaler = pod_of(objects), only(objects, "HorizontalPodAutoscaler")
    volumes = pod.get("volumes", ())
    claims = [one["persistentVolumeClaim"] for one in volumes if "persistentVolumeClaim" in one]
    return {
        ("ServiceAccount", pod["serviceAccountName"]),
        ("Deployment", scaler["spec"]["scaleTargetRef"]["name"]),
        *(("PersistentVolumeClaim", claim["claimName"]) for claim in claims),
        *(
            ("PersistentVolume", claim["spec"]["volumeName"])
            for claim in of_kind(objects, "PersistentVolumeClaim")
        ),
    }


def test_what_an_object_names_is_in_the_release(objects: list[Object]) -> None:
    """kustomize renames objects; a reference that it does not know would keep the old name."""
    there = {(one["kind"], one["metadata"]["name"]) for one in objects}
    referenced = references(objects)

    assert referenced <= there
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
        there = {(one["kind"], one["metadata"]["name"]) for one in objects}
        assert references(objects) <= there
        for one in objects:
            # A volume is the cluster's: its namespace comes first, and a dot.
            namespace = r"(models\.)?" if one["kind"] == "PersistentVolume" else ""
            assert re.fullmatch(namespace + DNS_LABEL, one["metadata"]["name"]), one
            assert validate(json.dumps(one), MINORS[-1]) == MINORS[-1]


def test_no_object_of_a_model_is_that_of_another(releases: dict[str, list[Object]]) -> None:
    """A release would replace it."""
    every = [
        (one["kind"], one["metadata"]["name"]) for objects in releases.values() for one in objects
    ]

    assert len(every) == len(set(every))


def test_selectors_select_the_pods_of_one_model(releases: dict[str, list[Object]]) -> None:
    for model, objects in releases.items():
        deployment = only(objects, "Deployment")["spec"]["selector"]["matchLabels"]
        for selector in (deployment, *selectors(objects).values()):
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


def test_no_deployment_selects_the_pods_of_the_other_track(overlay: str) -> None:
    """Two that did would fight over one set of pods."""
    stable, canary = render(overlay), render(overlay, (CANARY,))

    for one, other in ((stable, canary), (canary, stable)):
        selector = only(one, "Deployment")["spec"]["selector"]["matchLabels"]
        assert not matches(selector, labels_of_pods(other))


@pytest.mark.parametrize("kind", ["Service", "PodDisruptionBudget", "NetworkPolicy"])
def test_what_tracks_share_selects_both_and_nothing_else(overlay: str, kind: str) -> None:
    """Of one model in one mode; not another model, not the other mode."""
    selector = selectors(render(overlay))[kind]
    both = [render(overlay), render(overlay, (CANARY,), B)]
    others = [render(other, release=OTHER_MODEL) for other in SERVERS]
    others += [render(other) for other in SERVERS if mode_of(other) != mode_of(overlay)]

    assert all(matches(selector, labels_of_pods(one)) for one in both)
    assert not any(matches(selector, labels_of_pods(one)) for one in others)


def test_replicas_of_one_release_are_spread(pod: Any, objects: list[Object]) -> None:
    """One node or one zone that fails must not take them all."""
    constraints = pod["topologySpreadConstraints"]

    assert {one["topologyKey"] for one in constraints} == {
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    }
    for one in constraints:
        assert one["labelSelector"]["matchLabels"]
        assert matches(one["labelSelector"]["matchLabels"], labels_of_pods(objects))


def test_tracks_differ_in_name_and_track_alone(overlay: str) -> None:
    """A canary that differs in more is no evidence of what it becomes."""
    stable = render(overlay)
    name = only(stable, "Deployment")["metadata"]["name"]

    def as_stable(one: Object) -> Any:
        if one["kind"] not in OF_A_TRACK:
            return one
        written = json.dumps(one).replace('"track": "canary"', '"track": "stable"')
        return json.loads(written.replace(f'"{name}-canary"', f'"{name}"'))

    canary = render(overlay, (CANARY,))
    assert [as_stable(one) for one in canary] == stable
    assert only(canary, "Deployment")["metadata"]["name"] == f"{name}-canary"


def test_a_canary_changes_nothing_that_the_stable_track_uses(overlay: str) -> None:
    """It is applied beside the running one, and shares all but its own Deployment."""
    stable, canary = (
        [one for one in render(overlay, components, release) if one["kind"] not in OF_A_TRACK]
        for components, release in (((), A), ((CANARY,), B))
    )

    assert canary == stable


def test_a_canary_holds_its_own_model_and_no_trace_of_the_stable_one(overlay: str) -> None:
    """A component that names a model would beat the overlay's: a canary of the stable model."""
    written = json.dumps(only(render(overlay, (CANARY,), B), "Deployment"))
    server = server_of(pod_of(render(overlay, (CANARY,), B)))

    assert re.findall(rf"{A.sha256}|iris[/-]1", written) == []
    assert server["image"] == f"{mode_of(overlay)}@sha256:{B.sha256}"
    assert written.count(B.sha256) >= 2  # its image and its contract
    # The image is the model, or something else says which.
    assert mode_of(overlay) == "model_in_image" or "iris/2" in written


def test_all_containers_have_the_image_of_the_release(pod: Any, overlay: str) -> None:
    """What verifies a model must be what then serves it."""
    images = {container["image"] for container in containers(pod)}

    assert images == {f"{mode_of(overlay)}@sha256:{A.sha256}"}


def test_images_are_not_pulled_over_again(pod: Any) -> None:
    """A release's image does not change, and a registry that is away must stop no scale-out."""
    assert {container["imagePullPolicy"] for container in containers(pod)} == {"IfNotPresent"}


# ---- Security


def test_pods_are_restricted(deployment: Any) -> None:
    """Else the namespace would not admit them, and say so in an event of a ReplicaSet only."""
    assert violations(deployment["spec"]["template"]) == []


def _unset(*path: str) -> Callable[[Any], None]:
    def change(pod: Any) -> None:
        *way, last = path
        del functools.reduce(lambda tree, key: tree[key], way, pod)[last]

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
def test_the_check_of_restricted_pods_finds_what_is_not(change: Callable[[Any], None]) -> None:
    template = copy.deepcopy(only(render("model_load/bucket"), "Deployment")["spec"]["template"])
    change(template["spec"])

    assert violations(template) != []


def test_no_container_writes_to_its_root(pod: Any) -> None:
    for container in containers(pod):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_pods_have_no_token_of_the_api_server(pod: Any, objects: list[Object]) -> None:
    """Nothing here talks to it, so nobody who gets in shall."""
    assert pod["automountServiceAccountToken"] is False
    assert only(objects, "ServiceAccount")["automountServiceAccountToken"] is False


def test_services_add_nothing_to_the_environment(pod: Any) -> None:
    """MODEL_LOAD_PORT=tcp://… of a Service would be taken for a setting."""
    assert pod["enableServiceLinks"] is False


def test_only_the_pull_from_a_bucket_gets_a_secret(overlay: str, objects: list[Object]) -> None:
    """Not the server, which clients talk to, and not the pod, whose every container could ask."""
    secrets = [
        (one["kind"], *path)
        for one in objects
        for path in keys(one)
        if "secret" in str(path[-1]).lower()
    ]
    pull = ("Deployment", "spec", "template", "spec", "initContainers", 0, "envFrom", 0)

    assert secrets == ([(*pull, "secretRef")] if overlay == "model_load/bucket" else [])
    assert not any("envFrom" in container for container in pod_of(objects)["containers"])


def test_traffic_is_denied_by_default(objects: list[Object]) -> None:
    policy = only(objects, "NetworkPolicy")["spec"]

    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert matches(policy["podSelector"]["matchLabels"], labels_of_pods(objects))
    # A rule without ports is one for every port.
    for rule in policy["ingress"]:
        assert [list(port) for port in rule["ports"]] == [["port"]] * len(rule["ports"])


def test_the_management_port_is_open_to_monitoring_alone(objects: list[Object]) -> None:
    """Its list of every library's version is a list of what to try."""
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


def test_ports_are_those_that_the_server_listens_on(pod: Any, overlay: str) -> None:
    server = server_of(pod)
    numbers = {port["name"]: port["containerPort"] for port in server["ports"]}

    assert numbers == {
        "http": int(image_environment(mode_of(overlay))["PORT"]),
        "management": int(variables(server)["MANAGEMENT_PORT"]["value"]),
    }


def test_the_service_leads_to_the_port_of_predictions(objects: list[Object], pod: Any) -> None:
    ports = only(objects, "Service")["spec"]["ports"]

    assert [port["targetPort"] for port in ports] == ["http"]
    assert named(server_of(pod)["ports"], "http")


def test_every_probe_asks_a_declared_port(pod: Any) -> None:
    server = server_of(pod)
    declared = {port["name"] for port in server["ports"]}

    for probe in PROBES:
        assert server[probe]["httpGet"]["port"] in declared
        assert server[probe].get("httpGet", {}).keys() == {"path", "port"}


def test_the_server_answers_what_the_manifests_ask_where_they_ask(server: Start, mode: str) -> None:
    """Probes of a path, or on a port, that does not answer would restart healthy pods for ever."""
    running = server(MANAGEMENT_PORT="0").wait_until_ready()
    assert running.management_url is not None
    urls = {"http": running.url, "management": running.management_url}
    declared = [
        server_of(pod_of(render(overlay)))[probe]["httpGet"]
        for overlay in SERVERS
        if mode_of(overlay) == mode
        for probe in PROBES
    ]

    asked = {(probe["port"], probe["path"]) for probe in declared}
    assert asked
    for port, path in asked:
        assert httpx.get(urls[port] + path).status_code == 200
    assert {name: httpx.get(f"{url}/metrics").status_code for name, url in urls.items()} == {
        "http": 404,
        "management": 200,
    }
    assert {name: httpx.get(f"{url}/predict/test").status_code for name, url in urls.items()} == {
        "http": 200,
        "management": 404,
    }


def test_readiness_decides_on_the_golden_rows_and_liveness_does_not(pod: Any) -> None:
    """A model that goes bad takes a pod out of the Service; a restart would not mend it."""
    server = server_of(pod)

    assert {probe: server[probe]["httpGet"]["path"].rpartition("/")[2] for probe in PROBES} == {
        "startupProbe": "ready",
        "readinessProbe": "ready",
        "livenessProbe": "live",
    }


def test_every_variable_is_a_setting(pod: Any, overlay: str) -> None:
    """A server ignores what it does not know, so a misspelt setting would be none."""
    for container in containers(pod):
        assert variables(container).keys() <= settings_of(mode_of(overlay))
        assert len(variables(container)) == len(container["env"])


def test_settings_are_accepted_as_the_kubelet_writes_them(
    deployment: Any, overlay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, with those of the image: one wrong value and no pod starts."""
    mode, template = mode_of(overlay), deployment["spec"]["template"]
    for container in containers(template["spec"]):
        told = environment(template, container)
        monkeypatch.setattr(os, "environ", image_environment(mode) | told)

        accepted = SETTINGS[mode].from_environment().model_dump(mode="json")

        assert {name: str(accepted[name.lower()]) for name in told} == told
        assert accepted["contract_sha256"] == A.sha256
        # Each reaches its one source of the model; the image has that of model_in_image.
        assert bool(accepted.get("model_uri")) != bool(accepted["model_dir"])


def test_workers_follow_the_cores_that_are_asked_for(deployment: Any) -> None:
    template = copy.deepcopy(deployment["spec"]["template"])
    server = server_of(template["spec"])

    assert environment(template, server)["WORKERS"] == "1"
    server["resources"]["requests"]["cpu"] = "2500m"
    assert environment(template, server)["WORKERS"] == "3"


# ---- Where the model is


def test_every_mount_has_a_volume_and_every_volume_a_mount(pod: Any) -> None:
    volumes = {volume["name"] for volume in pod.get("volumes", ())}
    mounts = {
        mount["name"]
        for container in containers(pod)
        for mount in container.get("volumeMounts", ())
    }

    assert mounts == volumes


@each_overlay
def test_the_server_opens_its_model_where_it_was_put(overlay: str) -> None:
    """By the pull, by the image, or by the image that is mounted; and cannot change it."""
    pod = pod_of(render(overlay))
    directory = variables(server_of(pod)).get("MODEL_DIR")
    if directory is None:
        assert "MODEL_DIR" in image_environment(mode_of(overlay))
        return
    place = mounted(server_of(pod), directory["value"])
    assert place is not None
    mount, within = place
    assert mount["readOnly"] is True
    if "initContainers" not in pod:
        # As Dockerfile.model_in_image's target `model` lays it out.
        assert within == "models/iris/1"
        return
    pull = named(pod["initContainers"], "pull")
    left = mounted(pull, pull["args"][-1])
    assert left is not None
    assert (left[0]["name"], left[1]) == (mount["name"], within)
    assert not left[0].get("readOnly")


@each_overlay
def test_a_pull_from_a_volume_finds_it_mounted_and_cannot_write_there(overlay: str) -> None:
    """The store is everyone's."""
    pulls = pod_of(render(overlay)).get("initContainers", ())
    for uri in (variables(pull)["MODEL_URI"]["value"] for pull in pulls):
        if uri.startswith("/"):
            place = mounted(pulls[0], uri)
            assert place is not None
            assert place[0]["readOnly"] is True
            assert place[1] == "iris/1"


def test_init_containers_run_a_command_that_the_program_has(store: Path, tmp_path: Path) -> None:
    """It is run as it is written, but for the directory."""
    commands = {
        (mode_of(overlay), *container["args"])
        for overlay in SERVERS
        for container in pod_of(render(overlay)).get("initContainers", ())
    }
    assert commands
    for number, (mode, *arguments) in enumerate(sorted(commands)):
        to = tmp_path / str(number)
        to.mkdir()
        given = [str(to) if argument.startswith("/") else argument for argument in arguments]
        artifact = store / "iris" / "1"
        done = subprocess.run(
            [sys.executable, "-m", mode, *given],
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

        assert done.returncode == 0, done.stderr
        assert sorted(path.name for path in to.iterdir()) == ["contract.json", "model.onnx"]


def test_the_volume_of_a_kind_node_is_what_kind_mounts_there() -> None:
    """And what it mounts is the model store of `make train`."""
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
    """Else the kubelet kills a server that still answers."""
    server = server_of(pod)
    drain = SETTINGS[mode_of(overlay)].model_fields["drain_seconds"].default
    if "DRAIN_SECONDS" in variables(server):
        drain = int(variables(server)["DRAIN_SECONDS"]["value"])

    assert pod["terminationGracePeriodSeconds"] >= _pause_seconds(server) + drain


def _pause_seconds(server: Any) -> int:
    (seconds,) = re.findall(r"sleep (\d+)", server["lifecycle"]["preStop"]["exec"]["command"][-1])
    return int(seconds)


def test_before_a_pod_ends_its_clients_are_sent_elsewhere(server: Start, mode: str) -> None:
    """The hook is run as it is written, on a process that is not 1, and does not stop it."""
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
        answers = [client.get("/health")]
        while "connection" not in answers[-1].headers and len(answers) < 1000:
            answers.append(client.get("/health"))
    assert answers[-1].headers["connection"] == "close"
    assert {answer.status_code for answer in answers} == {200}
    assert running.process.poll() is None


def test_replicas_belong_to_the_autoscaler(objects: list[Object], deployment: Any) -> None:
    """A number in the Deployment would undo, with each release, what it has scaled to."""
    autoscaler = only(objects, "HorizontalPodAutoscaler")["spec"]

    assert "replicas" not in deployment["spec"]
    assert autoscaler["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    assert 2 <= autoscaler["minReplicas"] < autoscaler["maxReplicas"]


def test_an_autoscaler_measures_a_container_that_asks_for_what_it_measures(
    objects: list[Object], pod: Any
) -> None:
    """A utilization is one of the request; without that it measures nothing."""
    for metric in only(objects, "HorizontalPodAutoscaler")["spec"]["metrics"]:
        measured = metric["containerResource"]
        asked = named(pod["containers"], measured["container"])["resources"]["requests"]
        assert measured["name"] in asked


def test_a_drained_node_never_takes_the_last_replica(objects: list[Object]) -> None:
    budget = only(objects, "PodDisruptionBudget")["spec"]
    least = only(objects, "HorizontalPodAutoscaler")["spec"]["minReplicas"]

    assert 1 <= budget["maxUnavailable"] < least


def test_every_container_has_a_limit_of_memory_and_asks_for_cpu(pod: Any) -> None:
    """Without the first it takes the node with it, without the second it starves."""
    for container in containers(pod):
        resources = container["resources"]
        assert quantity(resources["requests"]["cpu"]) > 0
        memory = quantity(resources["limits"]["memory"])
        assert memory >= quantity(resources["requests"]["memory"]) > 0
        assert "cpu" not in resources["limits"]  # it would throttle while the node is idle


def test_a_start_that_takes_its_time_is_no_failed_rollout(deployment: Any, pod: Any) -> None:
    """A pod that may still become ready must not be what ends the rollout."""
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


def test_prune_keeps_what_a_rollback_can_bring_back(deployment: Any) -> None:
    assert deployment["spec"]["revisionHistoryLimit"] == int(default("KEEP"))


def default(variable: str) -> str:
    """A variable's default in the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (value,) = re.findall(rf"^{variable} \??= *(.+)$", makefile, re.MULTILINE)
    return str(value)
