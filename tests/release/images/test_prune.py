"""`make prune` with a real Docker: which images it keeps and removes, and what that frees.

The tests build tiny images below their own registry, so that other images are not considered. A
fake kubectl on PATH answers for the cluster.
"""

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from release.images import docker_images
from release.images import prune as prune_module
from release.images.docker import docker
from release.images.docker_images import Image, local_images
from release.images.prune import PruneError, prune
from release.kubernetes import kubectl as kubectl_module

# Only one process at a time may create and remove images.
pytestmark = pytest.mark.xdist_group("docker")

DOCKERFILE = """
FROM scratch
ENV A=b
COPY base /base
WORKDIR /here
COPY own .
LABEL some=label
"""
TITLE = "org.opencontainers.image.title"
REVISION = "org.opencontainers.image.revision"


@dataclass
class Engine:
    """Docker, and the images and containers that a test creates below its own registry."""

    directory: Path
    registry: str = field(default_factory=lambda: f"127.0.0.1/prune-{uuid.uuid4().hex[:12]}")
    images: list[str] = field(default_factory=list)
    containers: list[str] = field(default_factory=list)

    def build(
        self,
        name: str | None,
        own: bytes = b"",
        base: bytes = b"",
        labels: dict[str, str] | None = None,
    ) -> str:
        """Build an image with two layers and return its id.

        own, base: the content of the layers; images with the same base share that layer.
        labels: replace or add labels of this project; an empty value removes a label.
        """
        title = (name or "").partition(":")[0].rpartition("/")[2]
        project_labels = {TITLE: title, REVISION: uuid.uuid4().hex}
        (self.directory / "base").write_bytes(base or self.registry.encode())
        (self.directory / "own").write_bytes(own or uuid.uuid4().bytes)
        (self.directory / "Dockerfile").write_text(DOCKERFILE)
        return self._build(name, project_labels | (labels or {}))

    def build_foreign(self, name: str, dockerfile: str) -> str:
        """Build an image with another Dockerfile from the same files, and return its id."""
        (self.directory / "Dockerfile").write_text(dockerfile)
        return self._build(name, {})

    def _build(self, name: str | None, labels: dict[str, str]) -> str:
        options = [f"--label={key}={value}" for key, value in labels.items() if value]
        tag = [f"--tag={self.registry}/{name}"] if name else []
        image = docker("build", "--quiet", *tag, *options, str(self.directory)).strip()
        self.images.append(image)
        return image

    def create(self, image: str) -> str:
        """Create a container, do not start it, and return its name."""
        name = f"prune-{uuid.uuid4().hex[:12]}"
        docker("create", f"--name={name}", image, "none")
        self.containers.append(name)
        return name

    def prune(self, keep: int = 1, *, yes: bool = True, store: str = "no-store") -> int:
        """Prune the images below this registry."""
        return prune(store, keep, yes=yes, registry=self.registry)

    def remaining(self) -> list[str]:
        """Return the images that still exist, in the order of their builds."""
        existing = docker("image", "ls", "--quiet", "--no-trunc").split()
        return [image for image in self.images if image in existing]

    def close(self) -> None:
        """Remove the containers and the images."""
        for name in self.containers:
            docker("rm", name)
        for image in reversed(self.remaining()):
            (record,) = json.loads(docker("image", "inspect", image))
            docker("rmi", *(record["RepoTags"] or [image]))


@pytest.fixture
def engine(engine: None, tmp_path: Path) -> Iterator[Engine]:
    """Docker, with the images of this test, which are removed at the end."""
    del engine
    (tmp_path / "context").mkdir()
    engine_of_test = Engine(tmp_path / "context")
    try:
        yield engine_of_test
    finally:
        engine_of_test.close()


@pytest.fixture(autouse=True)
def no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the developer's kubectl and its configuration; print wide tables."""
    program = os.environ.get("DOCKER") or "docker"
    monkeypatch.setenv("DOCKER", shutil.which(program) or program)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("KUBECONFIG", os.devnull)
    monkeypatch.setenv("COLUMNS", "220")


@dataclass(frozen=True)
class Kubectl:
    """A fake kubectl: a shell script with a context and a response to `get`."""

    program: Path

    def answers(self, get: str, context: str = "echo kind-test") -> None:
        lines = ("#!/bin/sh", 'if [ "$1" = config ]; then', context, "else", get, "fi")
        self.program.write_text("\n".join(lines))
        self.program.chmod(0o755)


@pytest.fixture
def kubectl(tmp_path: Path) -> Kubectl:
    """A fake kubectl; the program exists after the first call of answers()."""
    return Kubectl(tmp_path / "bin" / "kubectl")


def answer(*items: dict[str, object]) -> str:
    """Return the shell command that prints a list of objects as kubectl does."""
    return f"echo '{json.dumps({'items': items})}'"


def kilobytes(text: str, pattern: str) -> float:
    match = re.search(pattern.replace("SIZE", r"([\d.]+) kB"), text)
    assert match, text
    return float(match.group(1))


def test_the_newest_images_of_each_mode_and_model_are_kept(engine: Engine) -> None:
    """A release of one model must not remove the rollback target of another model."""
    old_iris = engine.build("model_in_image:1-iris-1", labels={"model.name": "iris"})
    images = [
        engine.build("model_in_image:1-digits-1", labels={"model.name": "digits"}),
        engine.build("model_load:1"),
        engine.build("model:iris-1", labels={"model.name": "iris"}),
        engine.build("model_in_image:2-iris-1", labels={"model.name": "iris"}),
        engine.build("model_in_image:3-iris-1", labels={"model.name": "iris"}),
    ]

    assert engine.prune(keep=2) == 0

    assert old_iris not in engine.remaining()
    assert engine.remaining() == images


def test_a_build_from_the_cache_is_as_new_as_its_tag(engine: Engine) -> None:
    """Docker gives it the date of the first build with the same content."""
    engine.build("model_load:1", own=b"the same")
    engine.build("model_load:2")
    again = engine.build("model_load:3", own=b"the same")

    engine.prune(keep=1)

    assert engine.remaining() == [again]


def test_without_yes_nothing_is_removed(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    """The list shows what YES=1 would remove."""
    images = [engine.build("model_load:1"), engine.build("model_load:2")]

    assert engine.prune(yes=False) == 0

    assert engine.remaining() == images
    shown = {
        line.split()[1].rpartition("/")[2]: line
        for line in capsys.readouterr().out.splitlines()
        if engine.registry in line
    }
    assert "would remove" in shown["model_load:1"]
    assert "kept: among the newest 1" in shown["model_load:2"]


def test_an_image_that_a_container_uses_is_kept(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stopped container counts: it can be started again."""
    used, unused = engine.build("model_load:1"), engine.build("model_load:2")
    newest = engine.build("model_load:3")
    name = engine.create(used)

    assert engine.prune() == 0

    assert unused not in engine.remaining()
    assert engine.remaining() == [used, newest]
    assert f"kept: used by container {name}" in capsys.readouterr().out


def test_images_of_other_projects_are_never_removed(engine: Engine) -> None:
    """Images with similar labels, with inherited labels, or with a foreign second name."""
    others = [
        engine.build("model_load:1", labels={REVISION: ""}),
        engine.build("model_load:2", labels={TITLE: "another"}),
    ]
    engine.build("model_load:3")
    derived = f"FROM {engine.registry}/model_load:3\nCOPY own /foreign"
    others += [engine.build_foreign("foreign:1", derived), engine.build("model_load:4")]
    docker("tag", others[-1], f"{engine.registry}/mine:4")
    newest = engine.build("model_load:5")

    assert engine.prune() == 0

    assert engine.remaining() == [*others, newest]


def test_images_of_another_registry_are_ignored(engine: Engine) -> None:
    engine.build("model_load:1")
    other = engine.build("below/model_load:2")
    engine.build("model_load:3")

    assert prune("none", 1, yes=True, registry=f"{engine.registry}/below/") == 0

    assert other in engine.remaining()
    assert len(engine.remaining()) == 3


def test_an_image_whose_tag_moved_to_a_newer_build_is_removed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not count among the newest, so an image with a name is not removed instead."""
    title = f"model-{uuid.uuid4().hex[:12]}"
    monkeypatch.setattr(docker_images, "TITLES", (title,))
    release = engine.build(f"{title}:1")
    nameless = engine.build(None, labels={TITLE: title})

    assert [image.id for image in local_images("").images] == [nameless, release]
    assert prune("none", 1, yes=True) == 0

    assert engine.remaining() == [release]


def test_all_names_of_an_image_are_removed(engine: Engine) -> None:
    first = engine.build("model_load:1")
    docker("tag", first, f"{engine.registry}/model_load:one")
    newest = engine.build("model_load:2")

    assert engine.prune() == 0

    assert engine.remaining() == [newest]


def test_only_layers_without_a_remaining_image_count_as_freed(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shared layer is freed with its last image, and counts once."""
    common, shared = os.urandom(400_000), os.urandom(90_000)
    engine.build("model_load:1", base=common, own=os.urandom(30_000))
    engine.build_foreign("foreign:1", "FROM scratch\nCOPY base /base\n")
    engine.build("model_load:2", base=shared, own=os.urandom(10_000))
    engine.build("model_load:3", base=shared, own=os.urandom(20_000))
    engine.build("model_load:4", base=b"small")

    engine.prune(yes=False)
    would_free = capsys.readouterr().out
    engine.prune()
    freed = capsys.readouterr().out

    expected = 30 + 10 + 20 + 90
    for text, pattern in ((would_free, "Would free SIZE of"), (freed, "Freed SIZE of")):
        assert kilobytes(text, pattern) == pytest.approx(expected, rel=0.1)
        assert kilobytes(text, "of SIZE, the size of all") == pytest.approx(expected + 400, rel=0.1)


def test_a_failed_removal_does_not_stop_the_others(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A container may start after the containers were listed; no removal is forced."""
    goes, used = engine.build("model_load:1", os.urandom(50_000)), engine.build("model_load:2")
    goes_too, newest = (
        engine.build("model_load:3", os.urandom(50_000)),
        engine.build("model_load:4"),
    )
    monkeypatch.setattr(prune_module, "_containers", lambda _: [])
    engine.create(used)

    assert engine.prune() == 1

    assert not {goes, goes_too} & {*engine.remaining()}
    assert engine.remaining() == [used, newest]
    shown = capsys.readouterr().out
    assert re.search(r"model_load:2 .*NOT removed: ", shown)
    assert kilobytes(shown, "Freed SIZE of") == pytest.approx(100, rel=0.1)


def test_artifacts_are_counted_and_kept(
    engine: Engine, artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Artifacts need disk space too, but a published version is never removed."""
    size = sum(file.stat().st_size for file in artifact.iterdir())
    store = artifact.parent.parent
    (artifact.parent / "aliases").mkdir()
    (artifact.parent / "aliases" / "stable").write_text("1")

    engine.prune(store=str(store))
    engine.prune(store="s3://bucket/models")
    engine.prune(store="https://user:zq@cdn/models")

    shown = capsys.readouterr().out
    assert (
        f"Artifacts: 1 in {store}, {size / 1000:.1f} kB; `make prune` never removes artifacts."
        in shown
    )
    assert "not counted, because STORE=s3://bucket/models is not a local directory" in shown
    assert "not counted, because STORE=https://…@cdn/models is not a local directory" in shown
    assert artifact.exists()


def test_keeping_no_image_is_rejected() -> None:
    """The newest image may not be deployed yet."""
    with pytest.raises(PruneError, match="KEEP: expected 1 or more, got 0"):
        prune("none", 0, yes=True)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (["echo refused >&2; exit 1"], "kubectl get: refused"),
        (["echo '{\"items\": 7}'"], "expected a list of pods and ReplicaSets, got"),
        (["exit 0", "echo error loading config file >&2; exit 1"], "error loading config file"),
    ],
)
def test_nothing_is_removed_if_a_configured_cluster_is_unreachable(
    engine: Engine, kubectl: Kubectl, answers: list[str], message: str
) -> None:
    """The cluster may run any image, or need it for a rollback."""
    images = [engine.build("model_load:1"), engine.build("model_load:2")]
    kubectl.answers(*answers)

    with pytest.raises(PruneError, match=message) as error:
        engine.prune()

    assert "Nothing was removed" in str(error.value)
    assert engine.remaining() == images


def test_a_cluster_that_does_not_answer_fails_after_a_timeout(
    kubectl: Kubectl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timeout also ends programs that kubectl started, for example to log in."""
    monkeypatch.setattr(kubectl_module, "_TIMEOUT_SECONDS", 0.5)
    kubectl.answers("exit 0", context=f"{shutil.which('sleep', path=os.defpath)} 5")
    started = time.monotonic()

    with pytest.raises(PruneError, match="no response within"):
        prune("none", 1, yes=True, registry="127.0.0.1/none")

    assert time.monotonic() - started < 4


def test_nothing_is_removed_if_kubectl_is_missing_for_a_configured_cluster(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [engine.build("model_load:1"), engine.build("model_load:2")]
    (tmp_path / "config").write_text("clusters: []")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))

    with pytest.raises(PruneError, match="config may name a cluster"):
        engine.prune()

    assert engine.remaining() == images


@pytest.mark.parametrize("installed", [False, True])
def test_without_a_cluster_only_containers_need_images(
    engine: Engine, kubectl: Kubectl, capsys: pytest.CaptureFixture[str], *, installed: bool
) -> None:
    """The output states it, for users who believe that a cluster is configured."""
    if installed:
        kubectl.answers("exit 1", "echo 'error: current-context is not set' >&2; exit 1")
    engine.build("model_load:1")
    newest = engine.build("model_load:2")

    assert engine.prune() == 0

    assert engine.remaining() == [newest]
    assert "No cluster is configured" in capsys.readouterr().out


def test_images_that_the_cluster_needs_are_kept(
    engine: Engine, kubectl: Kubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    """A ReplicaSet without pods is a revision that a rollback may deploy again."""
    names = [f"{engine.registry}/{name}" for name in ("model_load:1", "model_load:2", "model:1")]
    needed = [engine.build("model_load:1"), engine.build("model_load:2"), engine.build("model:1")]
    moved = engine.build("model_load:3")
    engine.build("model_load:4")
    newest = [engine.build("model:5"), engine.build("model_load:5")]
    in_set = {"containers": [{"name": "server", "image": names[0]}]}
    in_pod = {
        "initContainers": [{"image": names[1]}],
        "containers": [{"image": "elsewhere/model_load:4"}],
        "volumes": [{"name": "tmp"}, {"image": {"reference": names[2]}}],
    }
    status = {"containerStatuses": [{"imageID": f"docker-pullable://{moved}"}, {"imageID": ""}]}
    kubectl.answers(
        answer(
            {"kind": "ReplicaSet", "spec": {"replicas": 0, "template": {"spec": in_set}}},
            {"kind": "Pod", "spec": in_pod, "status": status},
        )
    )

    assert engine.prune() == 0

    assert engine.remaining() == [*needed, moved, *newest]
    shown = capsys.readouterr().out
    assert "cluster of the context kind-test" in shown
    assert shown.count("kept: the cluster needs it") == 4


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("model_load:1", True),
        ("docker.io/library/model_load:1", True),
        ("index.docker.io/library/model_load:1", True),
        ("host:5000/model_load", True),
        ("host:5000/model_load:latest", True),
        ("model_load:1@sha256:moved", True),
        ("anywhere/else@sha256:pushed", True),
        ("sha256:image", True),
        ("model_load:2", False),
        ("model_load", False),
        ("host:5000/model_load:1", False),
        ("docker.io/acme/model_load:1", False),
        ("host:5000/model_load@sha256:other", False),
        ("", False),
    ],
)
def test_an_image_matches_the_names_that_clusters_use(reference: str, *, expected: bool) -> None:
    """Nodes report full names, with a digest if they know it."""
    image = Image(
        id="sha256:image",
        title="model_load",
        model="",
        names=("model_load:1", "host:5000/model_load:latest"),
        digests=frozenset(["sha256:image", "sha256:pushed"]),
        built_at=datetime.now(UTC),
        layers=(),
    )

    assert image.matches(reference) is expected
