"""`make inventory` against real servers, some with deliberate differences."""

import html
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import httpx
import pytest

from artifact.contract import read_contract
from release.inventory.drift import known_problems
from release.inventory.replica import Address, query_replicas
from release.local.server_process import ServerProcess
from tests.audit_services import JINJA2, audit_services
from tests.fakes import FakePasswordStore
from tests.servers import DATASETS, start, wait_until

ROOT = Path(__file__).parent.parent.parent


def inventory(urls: list[str], store: Path | str, form: str) -> subprocess.CompletedProcess[str]:
    """Run the command of `make inventory` in a directory with its own cache."""
    command = ["inventory", f"--urls={' '.join(urls)}", f"--store={store}", f"--format={form}"]
    return subprocess.run(
        [sys.executable, "-m", "release", *command],
        env={**os.environ, "COLUMNS": "200", "PYTHONPATH": str(ROOT)},
        cwd=store.parent if isinstance(store, Path) else ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@dataclass(frozen=True)
class Servers:
    """Four servers, two versions in both modes, with three deliberate differences."""

    urls: list[str]
    store: Path
    old: str  # the URL of the server with an old onnxruntime
    gone: str  # the version that the store no longer has


@pytest.fixture(scope="module")
def servers(two_csv_versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    store = tmp_path_factory.mktemp("record") / "models"
    for version in ("1", "2"):
        shutil.copytree(two_csv_versions / "flowers" / version, store / "flowers" / version)
    contract = read_contract(store / "flowers" / "2")
    empty = contract.model_copy(update={"purpose": ""})
    (store / "flowers" / "2" / "contract.json").write_text(empty.to_json())
    older = tmp_path_factory.mktemp("older") / "onnxruntime-1.20.0.dist-info"
    older.mkdir()
    (older / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime\nVersion: 1.20.0\n")
    with ExitStack() as running:
        started: list[ServerProcess] = [
            running.enter_context(start(mode, store / "flowers" / version, **settings))
            for mode, version, settings in (
                ("model_in_image", "1", {}),
                ("model_in_image", "2", {}),
                ("model_load", "1", {"PYTHONPATH": str(older.parent)}),
                ("model_load", "2", {"WORKERS": "2"}),
            )
        ]
        urls = [server.wait_until_ready().url for server in started]
        shutil.rmtree(store / "flowers" / "1")
        yield Servers(urls, store, old=urls[2], gone="flowers/1")


def test_the_table_shows_every_server_and_each_difference(servers: Servers) -> None:
    shown = inventory(servers.urls, servers.store, "table")

    assert shown.returncode == 1
    for url in servers.urls:
        assert url in shown.stdout
    assert f"{servers.old}: flowers/1: onnxruntime 1.20.0, its training had" in shown.stdout
    for url in (servers.urls[0], servers.urls[2]):
        assert f"{url}: {servers.gone}: {servers.store} does not have it" in shown.stdout
    for url in (servers.urls[1], servers.urls[3]):
        assert f"{url}: flowers/2: its contract's purpose is empty" in shown.stdout


def test_json_has_the_full_inventory_of_every_worker(servers: Servers) -> None:
    content = json.loads(inventory(servers.urls, servers.store, "json").stdout)

    assert [replica["url"] for replica in content["replicas"]] == [*servers.urls, servers.urls[3]]
    assert len({replica["pid"] for replica in content["replicas"]}) == 5
    old = content["replicas"][2]
    trained = read_contract(servers.store / "flowers" / "2").origin.environment.libraries
    assert old["model"]["other_versions"] == {
        "onnxruntime": {"trained": trained["onnxruntime"], "here": "1.20.0"}
    }
    assert any("all replicas: onnxruntime differs" in line for line in content["disagreements"])


@pytest.mark.parametrize("form", ["markdown", "html"])
def test_the_inventory_can_be_saved_as_a_page(form: str, servers: Servers) -> None:
    page = inventory(servers.urls, servers.store, form).stdout

    for word in ("make train", "float32[N,4]", "purpose is empty", "trained from"):
        assert word in page
    # The page loads no assets from other hosts.
    assert "http" not in page.replace("http://127.0.0.1:", "")


def test_vulnerabilities_and_end_of_life_dates_of_running_software_are_reported(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vulnerability may become known after a library was locked and deployed."""
    numpy = metadata.version("numpy")
    with audit_services() as services:
        services.vulnerable["numpy", numpy] = {**JINJA2, "id": "PYSEC-1", "aliases": []}
        services.ends["python"] = {"3": "2020-01-01"}
        for name, value in services.environment.items():
            monkeypatch.setenv(name, value)
        shown = json.loads(inventory(servers.urls, servers.store, "json").stdout)

    everywhere = ", ".join(servers.urls)
    python = f"{everywhere}: python {platform.python_version()}: past end of life since 2020-01-01"
    assert any(line.startswith(python) for line in shown["disagreements"])
    assert f"{everywhere}: numpy {numpy}: PYSEC-1, fixed in no version" in shown["disagreements"]
    assert any("package versions: pip-audit, osv, as of" in line for line in shown["notes"])
    # Both versions of onnxruntime were checked.
    assert {"1.20.0", metadata.version("onnxruntime")} == {
        version for name, version in services.queries if name == "onnxruntime"
    }


KUBECTL = """#!/bin/sh
if [ "$1" = config ]; then echo kind; else echo '{"serverVersion": {"gitVersion": "v1.33.5"}}'; fi
"""


def test_the_end_of_life_of_kubernetes_is_reported_if_replicas_run_in_a_cluster(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(KUBECTL)
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    outside, *_ = query_replicas([Address.of(servers.urls[0])])[0]
    in_cluster = replace(outside, address=replace(outside.address, track="stable"))
    with audit_services() as services:
        services.ends["kubernetes"] = {"1.33": "2026-06-28"}
        for name, value in services.environment.items():
            monkeypatch.setenv(name, value)
        problems = [known_problems([replica])[0] for replica in (outside, in_cluster)]

    assert problems[0] == []
    (line,) = problems[1]
    assert line.startswith("the cluster: kubernetes 1.33.5: past end of life since 2026-06-28")


def test_the_inventory_passes_if_the_audit_services_are_unreachable(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cluster without internet the rest of the inventory is still useful."""
    for name in ("PIP_AUDIT_OSV_URL", "ENDOFLIFE_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with start("model_in_image", store / "iris" / "1") as server:
        url = server.wait_until_ready().url
        content = json.loads(inventory([url], store, "json").stdout)

    assert [line for line in content["disagreements"] if "past end of life" not in line] == []
    for service in ("pip-audit, osv", "http://127.0.0.1:9"):
        assert any(line.startswith(f"not checked: {service}: ") for line in content["notes"])


def test_equal_replicas_pass(store: Path) -> None:
    """Exit status 0 makes the command usable in CI."""
    with ExitStack() as running:
        urls = [
            running.enter_context(start(mode, store / dataset / "1")).wait_until_ready().url
            for dataset, mode in zip(
                DATASETS, ("model_in_image", "model_load", "model_load"), strict=True
            )
        ]
        shown = inventory(urls, store, "table")

    assert shown.returncode == 0, shown.stdout
    assert "Everything agrees." in shown.stdout


def test_an_unreachable_server_is_reported(store: Path) -> None:
    """An unreachable server must not pass as correct."""
    shown = inventory(["http://127.0.0.1:9"], store, "table")

    assert shown.returncode == 1
    assert "http://127.0.0.1:9: cannot read /inventory" in shown.stdout


@contextmanager
def fake_server(response: object, authorization: str | None = None) -> Iterator[str]:
    """Yield the URL of a server that returns this JSON to every request.

    authorization: the value of the header that the server requires.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(response).encode()
            self.send_response(200 if self.headers["Authorization"] == authorization else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("response", [None, [], {"pid": 1, "settings": {"workers": 1}}])
def test_an_unexpected_response_is_reported_and_other_servers_are_listed(
    response: object, servers: Servers
) -> None:
    """The inventory is needed most while different versions run side by side."""
    with fake_server(response) as url:
        shown = inventory([url, servers.urls[0]], servers.store, "json")

    content = json.loads(shown.stdout)
    assert [replica["url"] for replica in content["replicas"]] == [servers.urls[0]]
    assert f"{url}: cannot read /inventory: the response lacks " in content["disagreements"][0]


def test_a_worker_that_never_answers_is_reported(servers: Servers) -> None:
    whole = json.loads(inventory([servers.urls[0]], servers.store, "json").stdout)["replicas"][0]
    whole["settings"]["workers"] = 3
    with fake_server(whole) as url:
        content = json.loads(inventory([url], servers.store, "json").stdout)

    assert f"{url}: 1 of 3 workers answered" in content["disagreements"]


@pytest.mark.parametrize("form", ["table", "json", "markdown", "html"])
def test_a_password_in_urls_is_sent_and_never_shown(form: str, servers: Servers) -> None:
    """The inventory is a page that people share."""
    whole = httpx.get(f"{servers.urls[0]}/inventory").json()
    basic = f"Basic {b64encode(b'zquser:zq/zq').decode()}"
    with fake_server(whole, basic) as url:
        host = url.removeprefix("http://")
        urls = [
            f"http://zquser:{password}@{place}"
            for password, place in (
                ("zq%2Fzq", host),
                ("zqwrong", host),
                ("zq", "127.0.0.1:9"),
                ("zq/zq", host),
            )
        ]
        shown = inventory(urls, servers.store, form)

    assert "zq" not in shown.stdout + shown.stderr
    assert basic not in shown.stdout + shown.stderr
    text = html.unescape(shown.stdout.replace(r"\u2026", "…"))
    for place, why in (
        (host, "status 401"),
        ("127.0.0.1:9", "[Errno"),
        (host, "expected http://host:port"),
    ):
        assert f"http://…@{place}: cannot read /inventory: {why}" in text
    assert "flowers" in text  # the response to the correct password


def test_the_password_of_a_store_is_sent_and_never_shown(servers: Servers, tmp_path: Path) -> None:
    with FakePasswordStore(tmp_path) as protected:
        protected.publish(servers.store / "flowers" / "2")
        urls = [servers.urls[0], servers.urls[1]]
        stores = (protected.uri, protected.at(protected.address, "zq").uri)
        missing, refused = (inventory(urls, store, "table") for store in stores)
        rejected = inventory(urls, "s3://AKIAzq:zq@bucket", "table")

    place = f"http://…@{protected.address.removeprefix('http://')}/models"
    assert f"flowers/1: {place} does not have it" in missing.stdout
    assert "flowers/2: http" not in missing.stdout
    assert f"STORE: {place}: " in refused.stdout
    assert "AWS_ACCESS_KEY_ID" in rejected.stdout
    for done in (missing, refused, rejected):
        assert protected.leaks(done.stdout + done.stderr) == []


def test_the_inventory_works_without_docker(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers are queried over HTTP; only a note about old images needs Docker."""
    monkeypatch.setenv("DOCKER", "/nowhere/docker")
    with start("model_in_image", store / "iris" / "1", IMAGE="model_in_image:1-iris-1") as server:
        url = server.wait_until_ready().url
        content = json.loads(inventory([url], store, "json").stdout)

    assert content["replicas"][0]["image"] == "model_in_image:1-iris-1"
    assert content["disagreements"] == []
    note = "which images `make prune` would remove: DOCKER"
    assert any(note in line for line in content["notes"])


def test_an_unreachable_cluster_fails_the_inventory(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without URLS the pods of the cluster are queried: unreachable must not mean empty."""
    cluster = {"name": "gone", "cluster": {"server": "https://127.0.0.1:1"}}
    context = {"name": "gone", "context": {"cluster": "gone", "user": "nobody"}}
    user = {"name": "nobody", "user": {}}
    config = {"apiVersion": "v1", "kind": "Config", "current-context": "gone"}
    parts = {"clusters": [cluster], "contexts": [context], "users": [user]}
    (tmp_path / "config").write_text(json.dumps(config | parts))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))

    shown = inventory([], store, "table")

    assert shown.returncode == 1
    assert "kubectl" in shown.stderr


def test_library_versions_that_differ_from_training_are_logged_and_in_the_metadata(
    store: Path, tmp_path: Path
) -> None:
    """Golden rows may pass today; when results change later, the log names the cause."""
    artifact = Path(shutil.copytree(store / "iris" / "1", tmp_path / "iris" / "1"))
    contract = read_contract(artifact)
    libraries = {**contract.origin.environment.libraries, "numpy": "1.0"}
    environment = contract.origin.environment.model_copy(update={"libraries": libraries})
    origin = contract.origin.model_copy(update={"environment": environment})
    (artifact / "contract.json").write_text(
        contract.model_copy(update={"origin": origin}).to_json()
    )

    with start("model_in_image", artifact) as server:
        server.wait_until_ready()
        metadata = httpx.get(f"{server.url}/metadata").json()
        wait_until(lambda: len(server.events("other_versions_than_in_training")) > 0)

    assert metadata["other_versions"]["numpy"]["trained"] == "1.0"
    (event,) = server.events("other_versions_than_in_training")
    assert event["numpy"] == metadata["other_versions"]["numpy"]
