"""The record of what runs: asked of real servers, with what does not agree planted."""

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
from release.inventory.replica import Address, ask
from release.local.server_process import ServerProcess
from tests.audit_services import JINJA2, audit_services
from tests.fakes import PasswordStandIn
from tests.servers import DATASETS, start, wait_until

ROOT = Path(__file__).parent.parent.parent


def inventory(urls: list[str], store: Path | str, form: str) -> subprocess.CompletedProcess[str]:
    """Run the command behind `make inventory`, where its cache is nobody else's."""
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
class Planted:
    """Four servers, two versions in both modes, and the three things wrong with them."""

    urls: list[str]
    store: Path
    old: str
    gone: str


@pytest.fixture(scope="module")
def planted(two_csv_versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planted]:
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
        yield Planted(urls, store, old=urls[2], gone="flowers/1")


def test_one_table_shows_all_that_runs_and_names_what_is_wrong(planted: Planted) -> None:
    shown = inventory(planted.urls, planted.store, "table")

    assert shown.returncode == 1
    for url in planted.urls:
        assert url in shown.stdout
    assert f"{planted.old}: flowers/1: onnxruntime 1.20.0, its training had" in shown.stdout
    for url in (planted.urls[0], planted.urls[2]):
        assert f"{url}: {planted.gone}: {planted.store} does not have it" in shown.stdout
    for url in (planted.urls[1], planted.urls[3]):
        assert f"{url}: flowers/2: its contract's purpose is empty" in shown.stdout


def test_every_worker_is_a_replica_and_its_whole_answer_is_kept(planted: Planted) -> None:
    made = json.loads(inventory(planted.urls, planted.store, "json").stdout)

    assert [one["url"] for one in made["replicas"]] == [*planted.urls, planted.urls[3]]
    assert len({one["pid"] for one in made["replicas"]}) == 5
    old = made["replicas"][2]
    trained = read_contract(planted.store / "flowers" / "2").origin.environment.libraries
    assert old["model"]["other_versions"] == {
        "onnxruntime": {"trained": trained["onnxruntime"], "here": "1.20.0"}
    }
    assert any("all that runs: onnxruntime differs" in line for line in made["disagreements"])


@pytest.mark.parametrize("form", ["markdown", "html"])
def test_the_record_can_be_kept_as_a_page(form: str, planted: Planted) -> None:
    made = inventory(planted.urls, planted.store, form).stdout

    for word in ("make train", "float32[N,4]", "purpose is empty", "trained from"):
        assert word in made
    # Nothing from outside is needed to read it.
    assert "http" not in made.replace("http://127.0.0.1:", "")


def test_vulnerabilities_and_ends_of_life_of_running_software_are_found(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library without a known vulnerability when it was locked may have one today."""
    numpy = metadata.version("numpy")
    with audit_services() as services:
        services.vulnerable["numpy", numpy] = {**JINJA2, "id": "PYSEC-1", "aliases": []}
        services.ends["python"] = {"3": "2020-01-01"}
        for name, value in services.environment.items():
            monkeypatch.setenv(name, value)
        shown = json.loads(inventory(planted.urls, planted.store, "json").stdout)

    everywhere = ", ".join(planted.urls)
    python = f"{everywhere}: python {platform.python_version()}: past end of life since 2020-01-01"
    assert any(line.startswith(python) for line in shown["disagreements"])
    assert f"{everywhere}: numpy {numpy}: PYSEC-1, fixed in no version" in shown["disagreements"]
    assert any("package versions: pip-audit, osv, as of" in line for line in shown["notes"])
    # One onnxruntime is another one than elsewhere; each version was checked.
    assert {"1.20.0", metadata.version("onnxruntime")} == {
        version for name, version in services.queries if name == "onnxruntime"
    }


KUBECTL = """#!/bin/sh
if [ "$1" = config ]; then echo kind; else echo '{"serverVersion": {"gitVersion": "v1.33.5"}}'; fi
"""


def test_an_ended_kubernetes_is_found_where_replicas_run_in_a_cluster(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(KUBECTL)
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    outside, *_ = ask([Address.of(planted.urls[0])])[0]
    in_cluster = replace(outside, address=replace(outside.address, track="stable"))
    with audit_services() as services:
        services.ends["kubernetes"] = {"1.33": "2026-06-28"}
        for name, value in services.environment.items():
            monkeypatch.setenv(name, value)
        found = [known_problems([replica])[0] for replica in (outside, in_cluster)]

    assert found[0] == []
    (line,) = found[1]
    assert line.startswith("the cluster: kubernetes 1.33.5: past end of life since 2026-06-28")


def test_without_the_services_of_the_audit_the_inventory_passes(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cluster without internet the rest of the inventory is still true."""
    for name in ("PIP_AUDIT_OSV_URL", "ENDOFLIFE_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with start("model_in_image", store / "iris" / "1") as server:
        url = server.wait_until_ready().url
        made = json.loads(inventory([url], store, "json").stdout)

    assert [line for line in made["disagreements"] if "past end of life" not in line] == []
    for service in ("pip-audit, osv", "http://127.0.0.1:9"):
        assert any(line.startswith(f"not checked: {service}: ") for line in made["notes"])


def test_what_agrees_passes(store: Path) -> None:
    """Or nobody could use it in CI."""
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


def test_a_server_that_does_not_answer_is_named(store: Path) -> None:
    """What could not be asked has not been found in order."""
    shown = inventory(["http://127.0.0.1:9"], store, "table")

    assert shown.returncode == 1
    assert "http://127.0.0.1:9: no /inventory there" in shown.stdout


@contextmanager
def answering(answer: object, authorization: str | None = None) -> Iterator[str]:
    """The address of something that is no server of this project, or an older one.

    authorization: the header that it demands.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answer).encode()
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


@pytest.mark.parametrize("answer", [None, [], {"pid": 1, "settings": {"workers": 1}}])
def test_another_answer_is_named_and_loses_no_other(answer: object, planted: Planted) -> None:
    """Mixed revisions are what the record is for."""
    with answering(answer) as url:
        shown = inventory([url, planted.urls[0]], planted.store, "json")

    made = json.loads(shown.stdout)
    assert [one["url"] for one in made["replicas"]] == [planted.urls[0]]
    assert f"{url}: no /inventory there: the answer lacks " in made["disagreements"][0]


def test_a_worker_that_never_answers_is_missed(planted: Planted) -> None:
    whole = json.loads(inventory([planted.urls[0]], planted.store, "json").stdout)["replicas"][0]
    whole["settings"]["workers"] = 3
    with answering(whole) as url:
        made = json.loads(inventory([url], planted.store, "json").stdout)

    assert f"{url}: 1 of 3 workers answered" in made["disagreements"]


@pytest.mark.parametrize("form", ["table", "json", "markdown", "html"])
def test_a_password_in_urls_is_sent_and_never_shown(form: str, planted: Planted) -> None:
    """The record is a page that people pass on."""
    whole = httpx.get(f"{planted.urls[0]}/inventory").json()
    basic = f"Basic {b64encode(b'zquser:zq/zq').decode()}"
    with answering(whole, basic) as url:
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
        shown = inventory(urls, planted.store, form)

    assert "zq" not in shown.stdout + shown.stderr
    assert basic not in shown.stdout + shown.stderr
    text = html.unescape(shown.stdout.replace(r"\u2026", "…"))
    for place, why in (
        (host, "status 401"),
        ("127.0.0.1:9", "[Errno"),
        (host, "expected http://host:port"),
    ):
        assert f"http://…@{place}: no /inventory there: {why}" in text
    assert "flowers" in text  # from the answer to the right password


def test_the_password_of_a_store_is_sent_and_never_shown(planted: Planted, tmp_path: Path) -> None:
    with PasswordStandIn(tmp_path) as protected:
        protected.publish(planted.store / "flowers" / "2")
        urls = [planted.urls[0], planted.urls[1]]
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


def test_without_docker_the_servers_are_asked_all_the_same(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator's machine needs no Docker to ask over HTTP."""
    monkeypatch.setenv("DOCKER", "/nowhere/docker")
    with start("model_in_image", store / "iris" / "1", IMAGE="model_in_image:1-iris-1") as server:
        url = server.wait_until_ready().url
        made = json.loads(inventory([url], store, "json").stdout)

    assert made["replicas"][0]["image"] == "model_in_image:1-iris-1"
    assert made["disagreements"] == []
    assert any("`make prune` would remove was not asked: DOCKER" in line for line in made["notes"])


def test_a_cluster_that_cannot_be_asked_is_no_agreement(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without URLS it is the one to be asked, and must not pass for empty."""
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


def test_training_on_other_versions_is_said_at_the_start_and_in_the_metadata(
    store: Path, tmp_path: Path
) -> None:
    """The version trap: golden rows pass today, and somebody wonders a year later."""
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
    (said,) = server.events("other_versions_than_in_training")
    assert said["numpy"] == metadata["other_versions"]["numpy"]
