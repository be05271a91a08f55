"""The images, built and run by a real Docker: content, size, shared layers, and shutdown."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import httpx
import pytest

from artifact.contract import CONTRACT_FILE, MODEL_FILE, read_contract
from artifact.verify import sha256_of
from release.images.docker import DockerError, docker
from release.images.docker_images import Layer, image_layers
from tests.fakes import FAKES, unavailable
from tests.fault_proxy import FaultProxy
from tests.servers import ROWS, wait_until

# Only one process at a time may create and remove images.
pytestmark = pytest.mark.xdist_group("docker")

ROOT = Path(__file__).parents[3]
DOCKERFILES = ("Dockerfile.model_in_image", "Dockerfile.model_load")
# The restrictions of the pods in a cluster.
CONFINED = (
    "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges",
    "--memory=128m", "--memory-swap=128m", "--cpus=0.5",
)  # fmt: skip
MAX_BYTES = 165_000_000
MAX_TRANSFER_BYTES = 60_000_000
MAX_BYTES_BESIDE_MODEL = 10_000
CLIENTS = 8
MODEL = ("--model=models/iris/1", "--store=models")
# The instruction that removes pip. Docker writes the date into its layer.
DATED_INSTRUCTION = "RUN /bin/sh -c rm -rf /usr"


@dataclass(frozen=True)
class Images:
    """The images of `make build` and `make build-model`, and the folder that they were built in."""

    directory: Path
    tag: str
    output: str  # of `make build`
    model_in_image: str
    model_load: str
    model: str

    def layers(self) -> dict[str, list[Layer]]:
        """Return the layers of each image."""
        return {
            name: image_layers(name) for name in (self.model_in_image, self.model_load, self.model)
        }


def context(directory: Path, store: Path) -> Path:
    """Copy the files that the images are built from, and a model store, into a directory."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("artifact", "serving", "model_in_image", "model_load"):
        shutil.copytree(ROOT / name, directory / name, ignore=ignored)
    for name in (*DOCKERFILES, ".dockerignore", "build_layers.sh"):
        shutil.copy(ROOT / name, directory / name)
    shutil.copytree(store, directory / "models")
    return directory


def release(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m release …` in a directory, as make does."""
    return subprocess.run(
        [sys.executable, "-m", "release", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )


def build(directory: Path, tag: str) -> str:
    """Build both images and return the output of the command."""
    options = (f"--registry=127.0.0.1/{tag}", f"--image-tag={tag}")
    built = release(directory, "build", *MODEL, *options)
    assert built.returncode == 0, built.stderr
    return built.stdout


@pytest.fixture(scope="session")
def images(engine: None, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """The image of each mode and the model image, as make builds them."""
    del engine
    directory, tag = context(tmp_path_factory.mktemp("context"), store), f"test-{os.getpid()}"
    output = build(directory, tag)
    data = release(directory, "build-model", *MODEL, f"--registry=127.0.0.1/{tag}")
    assert data.returncode == 0, data.stderr
    images = Images(
        directory,
        tag,
        output,
        f"127.0.0.1/{tag}/model_in_image:{tag}-iris-1",
        f"127.0.0.1/{tag}/model_load:{tag}",
        f"127.0.0.1/{tag}/model:iris-1",
    )
    yield images
    docker("rmi", images.model_in_image, images.model_load, images.model)


@pytest.fixture(scope="session")
def volume(store: Path) -> Iterator[str]:
    """The docker option that mounts a model store that the server's user may read."""
    with tempfile.TemporaryDirectory() as directory:
        models = Path(shutil.copytree(store, Path(directory) / "models"))
        for folder in (models.parent, models):
            folder.chmod(0o755)
        yield f"--volume={directory}/models:/models:ro"


@contextmanager
def running(image: str, *options: str) -> Iterator[tuple[str, str]]:
    """Run an image with restrictions until it is ready; yield the container's name and URL."""
    name = docker("run", "--detach", "--publish=127.0.0.1:0:8000", *CONFINED, *options, image)
    name = name.strip()
    try:
        address = docker("port", name, "8000").splitlines()[0]
        with httpx.Client(base_url=f"http://{address}") as client:
            wait_until(lambda: is_ready(client) or has_ended(name), 60)
        assert not has_ended(name)
        yield name, f"http://{address}"
    finally:
        docker("rm", "--force", name)


def has_ended(name: str) -> bool:
    return docker("inspect", "--format={{.State.Running}}", name).strip() == "false"


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/v2/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def inside(image: str, *command: str) -> str:
    """Run a command in a container of an image and return its output."""
    first, *rest = command
    return docker("run", "--rm", "--network=none", f"--entrypoint={first}", image, *rest)


# Runs in a container and prints the files that an image should not contain.
FIND_UNWANTED_FILES = """
import importlib.util, json, os, shutil, subprocess
from pathlib import Path

modules = ["pip", "setuptools", "sklearn", "skl2onnx", "onnx", "pytest", "httpx", "rich", "training"]
find = f"import importlib.util as u; print([m for m in {modules} if u.find_spec(m)] or '')"
command = ["/usr/local/bin/python", "-c", find]
ours = [path for top in ("/opt/venv", "/app") for path in Path(top).rglob("*")]
compiled = {(path.parent.parent, path.name.split(".")[0]) for path in ours if path.suffix == ".pyc"}
print(json.dumps({
    "modules": [name for name in modules if importlib.util.find_spec(name)],
    "modules of the base image": subprocess.check_output(command, text=True).split(),
    "commands": [name for name in ("gcc", "cc", "make", "strip", "pip", "git") if shutil.which(name)],
    "uncompiled": [
        str(path) for path in ours
        if path.suffix == ".py" and (path.parent, path.stem) not in compiled
    ],
    "unwanted": [
        str(path) for path in ours
        if path.name in ("tests", ".cache") or path.suffix in (".pyx", ".pxd", ".h", ".c", ".a", ".whl")
    ],
    "writable": [
        folder for folder, _, files in os.walk("/")
        if not folder.startswith(("/proc", "/sys", "/dev"))
        and any(os.access(path, os.W_OK) for path in (folder, *(f"{folder}/{f}" for f in files)))
    ],
}))
"""  # noqa: E501


def common(dockerfile: str) -> str:
    """Return the part of a Dockerfile that must be the same in both."""
    text = (ROOT / dockerfile).read_text(encoding="utf-8")
    return text[: text.index("# ---- Only in this image.")].split("\nARG", 1)[1]


def test_both_dockerfiles_have_the_same_first_stages() -> None:
    """Different instructions would build different layers, which images cannot share."""
    assert common(DOCKERFILES[0]) == common(DOCKERFILES[1])
    assert "AS server" in common(DOCKERFILES[0])


def test_a_model_that_the_store_does_not_hold_is_rejected(
    artifact: Path, store: Path, tmp_path: Path
) -> None:
    """Images get deleted, so the store must have the original."""
    (tmp_path / "empty").mkdir()
    model = Path(shutil.copytree(artifact, tmp_path / "models" / "iris" / "1"))
    contract = read_contract(model)
    changed = contract.model_copy(update={"purpose": "another"})
    (model / CONTRACT_FILE).write_text(changed.to_json())
    for held_by in (store, tmp_path / "empty"):
        rejected = release(
            tmp_path, "build", "--model=models/iris/1", f"--store={held_by}", "--image-tag=none"
        )

        assert rejected.returncode == 1
        assert (
            f"STORE: {held_by} does not hold iris/1 with the same contract.json" in rejected.stderr
        )


def test_a_model_outside_the_build_context_is_rejected(artifact: Path, tmp_path: Path) -> None:
    """Docker's own message would be about a cache key, not about the model."""
    rejected = release(
        tmp_path, "build", f"--model={artifact}", f"--store={artifact.parent.parent}"
    )

    assert rejected.returncode == 1
    assert f"MODEL: expected a version below {tmp_path}/models" in rejected.stderr


def digests(image: list[Layer]) -> list[str]:
    """Return the digests of the layers, except of the layer that contains a date."""
    return [layer.digest for layer in image if not layer.created_by.startswith(DATED_INSTRUCTION)]


def test_the_images_share_all_layers_except_mode_and_model(images: Images) -> None:
    """Images of many models need the disk space of one image and one small layer per model."""
    made = images.layers()
    *shared, _, model = digests(made[images.model_in_image])
    *also_shared, _ = digests(made[images.model_load])

    assert shared == also_shared
    assert len(shared) > 2
    assert made[images.model][0].digest == model


def test_the_images_are_small(
    images: Images, record_property: Callable[[str, object], None]
) -> None:
    """Beside the base image, nearly all bytes are the libraries."""
    made = images.layers()
    artifact = images.directory / "models" / "iris" / "1"
    model = sum((artifact / file).stat().st_size for file in (MODEL_FILE, CONTRACT_FILE))
    for tag in (images.model_in_image, images.model_load):
        first = next(i for i, layer in enumerate(made[tag]) if "/layers/" in layer.created_by)
        size = sum(layer.size_bytes for layer in made[tag][first:])
        record_property("figure", f"{tag.rpartition('/')[2]}: base + {size / 1e6:.1f} MB")
        assert size <= MAX_BYTES
    assert made[images.model_in_image][-1].size_bytes <= model + MAX_BYTES_BESIDE_MODEL


def test_the_build_prints_the_bytes_that_a_node_transfers(images: Images) -> None:
    for word in ("libraries", "before compression", "next model", "next server", "built in"):
        assert word in images.output


REGISTRY = """
version: 0.1
storage: {{filesystem: {{rootdirectory: {directory}}}}}
http: {{addr: "127.0.0.1:0"}}
"""


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """The address of an empty registry on loopback."""
    program = shutil.which("docker-registry")
    if program is None:
        unavailable("needs docker-registry: apt-get install docker-registry")
    config, log = tmp_path / "registry.yaml", tmp_path / "registry.log"
    config.write_text(REGISTRY.format(directory=tmp_path / "registry"))
    command = [program, "serve", str(config)]
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as server:
        try:
            wait_until(lambda: "listening on 127.0.0.1:" in log.read_text())
            yield re.findall(r"listening on (127\.0\.0\.1:\d+)", log.read_text())[0]
        finally:
            server.terminate()


def test_the_compressed_size_of_a_pushed_image_comes_from_the_registry(
    images: Images, registry: str, record_property: Callable[[str, object], None]
) -> None:
    """Layers are compressed for the registry; only the registry knows the compressed size."""
    names = (images.model_in_image, images.model_load)
    pushed = [f"{registry}/{name.rpartition('/')[2]}" for name in names]
    try:
        for name, there in zip(names, pushed, strict=True):
            docker("tag", name, there)
            docker("push", "--quiet", there)
            made = image_layers(name)
            first = next(i for i, layer in enumerate(made) if "/layers/" in layer.created_by)
            transfer = sum(layer.transfer_bytes or 0 for layer in made[first:])
            record_property("figure", f"{there}: base + {transfer / 1e6:.1f} MB compressed")
            assert 1_000_000 < transfer <= MAX_TRANSFER_BYTES
            assert all(layer.transfer_bytes for layer in made)
        again = build(images.directory, images.tag)
    finally:
        docker("rmi", *pushed)

    assert "What a node transfers, compressed" in again
    assert "before compression" not in again


# A fake docker that answers as for a pushed image with BuildKit's attestations.
PUSHED_INDEX = """
import json, sys
index = {"manifests": [
    {"digest": "sha256:11", "platform": {"architecture": "unknown", "os": "unknown"}},
    {"digest": "sha256:22", "platform": {"architecture": "amd64", "os": "linux"}},
]}
image = {"layers": [{"size": 7}]}
match sys.argv[1:]:
    case ["image", "inspect", _]:
        names = ["registry.example/model_load@sha256:00"]
        print(json.dumps([{"Id": "1", "RootFS": {"Layers": ["d"]}, "RepoDigests": names}]))
    case ["history", *_]:
        print(json.dumps({"CreatedBy": "COPY", "Size": "9"}))
    case ["manifest", "inspect", "registry.example/model_load@sha256:00"]:
        print(json.dumps(index))
    case ["manifest", "inspect", "registry.example/model_load@sha256:22"]:
        print(json.dumps(image))
    case _:
        sys.exit("no such manifest")
"""


def test_the_compressed_size_is_of_the_image_not_of_its_attestation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "docker"
    program.write_text(f"#!{sys.executable}\n{PUSHED_INDEX}")
    program.chmod(0o755)
    monkeypatch.setenv("DOCKER", str(program))

    assert image_layers("model_load:1") == [Layer("d", "COPY", 9, 7)]


def test_the_same_content_is_the_same_layer(images: Images, store: Path, tmp_path: Path) -> None:
    """On every machine and at every time: a node then transfers only layers that changed."""
    again = context(tmp_path / "again", store)
    for path in again.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
        os.utime(path, (1, 1))
    tag = f"127.0.0.1/{images.tag}/again"
    docker("build", "--no-cache", "-q", "-t", tag, "-f", str(again / DOCKERFILES[0]), str(again))
    try:
        first, second = (
            image_layers(images.model_in_image),
            image_layers(tag),
        )
    finally:
        docker("rmi", tag)

    assert digests(first) == digests(second)
    (dated,) = (layer for layer in first if layer.created_by.startswith(DATED_INSTRUCTION))
    assert dated.size_bytes < 1000


def test_the_images_contain_only_files_that_the_server_needs(images: Images) -> None:
    """Missing files cannot be attacked and need no transfer."""
    for image in (images.model_in_image, images.model_load):
        found = json.loads(inside(image, "python", "-c", FIND_UNWANTED_FILES))

        assert found["modules"] == found["modules of the base image"] == []
        assert found["commands"] == []
        assert found["uncompiled"] == []
        assert found["unwanted"] == []
        # What everybody may write to in Debian; nothing is there when the root is read-only.
        assert set(found["writable"]) <= {"/run/lock", "/tmp", "/var/tmp"}  # noqa: S108


def test_an_image_says_what_it_is(images: Images) -> None:
    labels = json.loads(
        docker("inspect", "--format={{json .Config.Labels}}", images.model_in_image)
    )
    contract = read_contract(images.directory / "models" / "iris" / "1")

    assert labels["org.opencontainers.image.title"] == "model_in_image"
    assert labels["org.opencontainers.image.version"] == f"{images.tag}-iris-1"
    assert "org.opencontainers.image.revision" in labels
    assert labels["model.name"] == "iris"
    assert labels["model.version"] == "1"
    assert labels["model.sha256"] == contract.model.sha256


def test_the_data_image_is_the_artifact(images: Images) -> None:
    """Kubernetes mounts it; nothing else may be in it."""
    name = docker("create", images.model, "none").strip()
    program = os.environ.get("DOCKER") or "docker"
    try:
        exported = subprocess.run([program, "export", name], capture_output=True, check=True)
    finally:
        docker("rm", name)

    with tarfile.open(fileobj=BytesIO(exported.stdout)) as tar:
        files = {member.name: member for member in tar if member.name.startswith("models")}
        content = tar.extractfile("models/iris/1/model.onnx")
        assert content is not None
        model = content.read()
    assert sorted(name for name, member in files.items() if member.isfile()) == [
        "models/iris/1/contract.json",
        "models/iris/1/model.onnx",
    ]
    assert model == (images.directory / "models/iris/1/model.onnx").read_bytes()


def test_a_bad_artifact_stops_the_build(images: Images, artifact: Path) -> None:
    """A model that this server cannot serve must fail at build time, not at start-up."""
    bad = images.directory / "models" / "bad" / "1"
    shutil.copytree(artifact, bad, dirs_exist_ok=True)
    contract = read_contract(bad)
    outputs = json.loads(json.dumps(contract.golden.outputs))
    next(iter(outputs.values()))[0][0] += 0.5
    golden = contract.golden.model_copy(update={"outputs": outputs})
    (bad / CONTRACT_FILE).write_text(contract.model_copy(update={"golden": golden}).to_json())

    with pytest.raises(DockerError, match=r"golden rows: output .* expected"):
        docker(
            "build", "--build-arg=MODEL=models/bad/1", "--progress=plain",
            "-f", str(images.directory / DOCKERFILES[0]), str(images.directory),
        )  # fmt: skip


def test_both_images_run_with_the_restrictions_of_a_cluster(images: Images, volume: str) -> None:
    """Read-only, without capabilities, with 128 MB of memory and half a core."""
    for image, options in (
        (images.model_in_image, []),
        (images.model_load, [volume, "--env=MODEL_URI=/models/iris/1"]),
    ):
        with running(image, *options) as (name, url):
            answer = httpx.post(f"{url}/predict/label", json={"data": ROWS})
            inventory = httpx.get(f"{url}/inventory").json()
            assert httpx.get(f"{url}/docs").status_code == 200
            user = docker("exec", name, "id", "-u").strip()

        assert answer.json() == {"prediction": ["setosa", "virginica"]}
        assert inventory["image"] == image
        assert inventory["revision"]
        assert user == "65532"


def test_a_container_pulls_from_a_bucket_on_its_network(
    images: Images, artifact: Path, tmp_path: Path
) -> None:
    """Credentials in the environment and a writable /tmp are enough."""
    gateway = docker("network", "inspect", "bridge", "--format={{(index .IPAM.Config 0).Gateway}}")
    gateway = gateway.strip() or "172.17.0.1"
    (tmp_path / "store").mkdir()
    with (
        FAKES["s3"](tmp_path / "store") as store,
        FaultProxy(store.address, host=gateway) as proxy,
    ):
        store.publish(artifact)
        place = store.at(proxy.url)
        environment = {**place.environment, "MODEL_URI": f"{place.uri}/iris/1"}
        options = [f"--env={name}={value}" for name, value in environment.items()]

        with running(images.model_load, "--tmpfs=/tmp", *options) as (_, url):
            answer = httpx.post(f"{url}/predict", json={"data": ROWS})

    assert answer.headers["model-sha256"] == sha256_of(artifact / MODEL_FILE)


def predict_until_closed(url: str, began: threading.Barrier, answers: list[httpx.Response]) -> None:
    """Send predictions over one connection until the server closes it."""
    with httpx.Client(base_url=url, timeout=30) as client:
        for number in itertools.count():
            answers.append(client.post("/predict", json={"data": ROWS}))
            if number == 0:
                began.wait()
            if answers[-1].headers.get("connection") == "close":
                return


@pytest.mark.parametrize("mode", ["model_in_image", "model_load"])
def test_term_under_load_loses_no_request(mode: str, images: Images, volume: str) -> None:
    """A rolling update stops a container shortly after its last request."""
    options = [volume, "--env=MODEL_URI=/models/iris/1"] if mode == "model_load" else []
    answers: list[list[httpx.Response]] = [[] for _ in range(CLIENTS)]
    began = threading.Barrier(CLIENTS + 1)
    with running(getattr(images, mode), *options, "--env=DRAIN_SECONDS=10") as (name, url):
        clients = [
            threading.Thread(target=predict_until_closed, args=(url, began, own)) for own in answers
        ]
        for client in clients:
            client.start()
        began.wait(30)

        docker("stop", "--time=10", name)

        for client in clients:
            client.join(30)
        status = docker("inspect", "--format={{.State.ExitCode}}", name).strip()

    assert status == "0"
    assert {answer.status_code for own in answers for answer in own} == {200}
    assert all(own[-1].headers["connection"] == "close" for own in answers)


def test_the_sbom_lists_the_software_in_the_image(images: Images, tmp_path: Path) -> None:
    options = ("--model=models/iris/1", "--store=models", f"--registry=127.0.0.1/{images.tag}")

    made = release(
        images.directory, "sbom", *options, f"--image-tag={images.tag}", f"--to={tmp_path}"
    )

    assert made.returncode == 0, made.stderr
    of_image, of_load = (json.loads(Path(line).read_text()) for line in made.stdout.split())
    named = {component["name"]: component for component in of_image["components"]}
    assert named["onnxruntime"]["purl"].startswith("pkg:pypi/onnxruntime@")
    assert named["libc6"]["purl"].startswith("pkg:deb/debian/libc6@")
    # Scanners need the qualifier to choose the advisories of this Debian release.
    assert re.search(r"\?distro=debian-\d+$", named["libc6"]["purl"])
    assert named["iris"]["hashes"][0]["content"] == sha256_of(
        images.directory / "models" / "iris" / "1" / MODEL_FILE
    )
    assert "pip" not in named
    assert "iris" not in {component["name"] for component in of_load["components"]}
