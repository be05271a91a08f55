"""Credentials in MODEL_URI: sent to the store, and shown nowhere."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from release.local.server_process import ServerProcess
from tests.fakes import FakeAzureStore, FakePasswordStore
from tests.fault_proxy import FaultProxy, Redirect
from tests.servers import ROWS, start, wait_until

PATHS = ("/metadata", "/inventory", "/metrics", "/openapi.json", "/v2/models/iris", "/")
CONTRACT = "iris/1/contract.json"


@pytest.fixture(scope="module")
def protected(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakePasswordStore]:
    """A static server that demands a password, with the iris model."""
    with FakePasswordStore(tmp_path_factory.mktemp("protected")) as started:
        started.publish(store / "iris" / "1")
        yield started


def answers(server: ServerProcess) -> str:
    """The responses of all endpoints that describe the server."""
    with httpx.Client(base_url=server.url, timeout=20) as client:
        return "\n".join(client.get(path).text for path in PATHS)


def shown(store: FakePasswordStore) -> str:
    """The part of the store's URI that may be shown: host, port and path."""
    return store.at(store.address).uri.rpartition("@")[2]


def test_a_server_sends_the_password_and_shows_it_nowhere(
    protected: FakePasswordStore, tmp_path: Path
) -> None:
    settings = {"MODEL_CACHE_DIR": str(tmp_path), "LOG_LEVEL": "debug", "ACCESS_LOG": "true"}

    with start("model_load", f"{protected.uri}/iris/1", **settings) as server:
        server.wait_until_ready()
        answer = httpx.post(f"{server.url}/predict/label", json={"data": ROWS})
        inventory = httpx.get(f"{server.url}/inventory").json()
        output = answers(server)

    assert answer.json() == {"prediction": ["setosa", "virginica"]}
    assert protected.leaks(output + "".join(server.logged)) == []
    assert inventory["settings"]["model_uri"] == f"http://…@{shown(protected)}/iris/1"
    assert inventory["model"]["source"] == f"http://…@{shown(protected)}/iris/1"


def test_a_followed_alias_that_breaks_shows_no_password(store: Path, tmp_path: Path) -> None:
    """`degraded` is in /metadata, which every client may read."""
    (tmp_path / "web").mkdir()
    with FakePasswordStore(tmp_path / "web") as protected:
        protected.publish(store / "iris" / "1")
        protected.put("iris/aliases/stable", b"1\n")
        settings = {"MODEL_CACHE_DIR": str(tmp_path / "cache"), "MODEL_POLL_SECONDS": "0.05"}
        uri = f"{protected.uri}/iris@stable"
        with start("model_load", uri, **settings) as server:
            server.wait_until_ready()

            def degraded() -> str:
                return str(httpx.get(f"{server.url}/metadata").json()["degraded"])

            outputs = []
            protected.put("iris/aliases/stable", b"2\n")
            wait_until(lambda: degraded().startswith("iris/2: "))
            outputs.append(answers(server))
            protected.put("iris/aliases/stable", b"../../2\n")
            wait_until(lambda: degraded().startswith("iris@stable: "))
            outputs.append(answers(server))
            protected.delete("iris/aliases/stable")
            wait_until(lambda: "not found" in degraded())
            outputs.append(answers(server))
            protected.stop()
            wait_until(lambda: "gave up" in degraded())
            outputs.append(answers(server))
            answer = httpx.post(f"{server.url}/predict/label", json={"data": ROWS})

        assert answer.json() == {"prediction": ["setosa", "virginica"]}
        assert server.events("alias_not_read")
        assert server.events("model_refused")
        assert protected.leaks("\n".join([*outputs, *server.logged])) == []
        place = f"http://…@{shown(protected)}/iris"
        assert any(place in line for line in server.logged)


def test_a_start_that_fails_names_the_store_and_no_password(
    protected: FakePasswordStore, tmp_path: Path
) -> None:
    wrong = protected.at(protected.address, "zq-wrong").uri
    (tmp_path / "web").mkdir()
    with FakePasswordStore(tmp_path / "web") as gone:
        pass
    cases = {
        "Check the credentials": {"MODEL_URI": f"{wrong}/iris/1"},
        "gave up after 0.5 s": {"MODEL_URI": f"{gone.uri}/iris/1"},
        "iris/2/contract.json: not found": {"MODEL_URI": f"{protected.uri}/iris/2"},
        "iris/aliases/none: not found": {"MODEL_URI": f"{protected.uri}/iris@none"},
        "<store>/<name>/<version>": {"MODEL_URI": f"{protected.uri}/iris/a b"},
        "expected no '.' or '..'": {"MODEL_URI": f"{protected.uri}/../iris/1"},
    }  # fmt: skip
    for message, settings in cases.items():
        environment = {"MODEL_CACHE_DIR": str(tmp_path), "MODEL_PULL_SECONDS": "0.5", **settings}
        with start("model_load", "", **environment) as server:
            assert server.wait() == 1
        log = "".join(server.logged)
        assert message in log
        assert "http://…@127.0.0.1:" in log
        assert protected.leaks(log) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"MODEL_POLL_SECONDS": "5"}, "expected MODEL_URI to name an alias"),
        ({"MODEL_DIR": "/models/iris/1"}, "MODEL_URI or MODEL_DIR: expected one of them"),
        ({"WORKERS": "{uri}"}, "- WORKERS: "),
        ({"LOG_LEVEL": "{uri}"}, "- LOG_LEVEL: "),
        ({"HOST": "{uri}"}, "HOST: cannot listen"),
        ({"MODEL_URI": "", "MODEL_DIR": "{uri}"}, "expected a directory"),
    ],
)
def test_a_wrong_setting_shows_no_password(
    settings: dict[str, str], message: str, protected: FakePasswordStore, tmp_path: Path
) -> None:
    """Errors name the actual value, and a URI may stand in the place of another setting."""
    uri = f"{protected.uri}/iris/1"
    environment = {name: value.format(uri=uri) for name, value in settings.items()}

    with start("model_load", uri, **{"MODEL_CACHE_DIR": str(tmp_path), **environment}) as server:
        assert server.wait() == 1

    log = "".join(server.logged)
    assert message in log
    assert protected.leaks(log) == []


REJECTED = {
    "s3://AKIAzq:zq/zq@bucket/models/iris/1": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs://zq@bucket/models/iris@stable": "GOOGLE_APPLICATION_CREDENTIALS",
    "az://account:zq@container/models/iris/1": "AZURE_STORAGE_ACCOUNT_KEY",
    "az://container/models/iris/1?sv=1&sig=zq": "AZURE_STORAGE_SAS_TOKEN",
    "https://account.blob.core.windows.net/c/iris/1?sig=zq/zq": "AZURE_STORAGE_SAS_TOKEN",
    "https://b.s3.amazonaws.com/iris/1?X-Amz-Signature=zq": "A presigned URL opens one object",
    "https://cdn/models/iris@stable?token=zq": "expected no ? and no #",
    "https://cdn/models/iris/1#zq": "expected no ? and no #",
    "https://user:zq/zq@cdn/models/iris@stable": "/ as %2F",
    "https://user:zq#zq@cdn/models/iris@stable": "# as %23",
    "https://user:zq@cdn": "<store>/<name>/<version>",
    "HTTPS://user:zq@cdn/models/iris@stable": "expected a path, file:// or one of",
    "ftp://user:zq@cdn/models/iris/1": "expected a path, file:// or one of",
    "file://user:zq@host/models/iris/1": "file:///path",
    "file:///models/iris/1?zq": "file:///path",
    "https:/user:zq@cdn": "<store>/<name>/<version>",
}


@pytest.mark.parametrize("uri", REJECTED)
def test_a_uri_that_cannot_work_is_rejected_before_any_network_call(
    uri: str, tmp_path: Path
) -> None:
    """A secret must not reach a name server or a host that the user did not mean."""
    settings = {"MODEL_CACHE_DIR": str(tmp_path / "cache"), "MODEL_PULL_SECONDS": "60"}

    with start("model_load", uri, **settings) as server:
        assert server.wait() == 1

    log = "".join(server.logged)
    assert REJECTED[uri] in log
    assert "zq" not in log
    assert "Traceback" not in log
    assert not server.events("pull_retried")


def pull(to: Path, uri: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m model_load pull`."""
    return subprocess.run(
        [sys.executable, "-m", "model_load", "pull", "--to", str(to)],
        env={"PATH": os.environ["PATH"], "MODEL_URI": uri, "MODEL_PULL_SECONDS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_pull_alone_shows_no_password(protected: FakePasswordStore, tmp_path: Path) -> None:
    """The log of an init container is read by more people than its Secret."""
    wrong = protected.at(protected.address, "zq").uri
    uris = (f"{protected.uri}/iris/1", f"{protected.uri}/iris/2", f"{wrong}/iris/1")

    done = [pull(tmp_path / "model", uri) for uri in uris]

    assert [run.returncode for run in done] == [0, 1, 1]
    assert protected.leaks("".join(run.stdout + run.stderr for run in done)) == []
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "contract.json",
        "model.onnx",
    ]


def test_a_redirect_to_another_host_does_not_get_the_password(
    protected: FakePasswordStore, tmp_path: Path
) -> None:
    """A CDN may redirect to a host of another owner."""
    target = f"models/{CONTRACT}"
    with FaultProxy(protected.address) as proxy:
        uri = f"{protected.at(proxy.url).uri}/iris/1"
        proxy.inject(Redirect(f"{proxy.url}/{target}"), path=target)
        same = pull(tmp_path / "same", uri)
        proxy.inject(Redirect(f"{protected.address}/{target}"), path=target)
        another = pull(tmp_path / "another", uri)

    assert same.returncode == 0, same.stderr
    assert another.returncode == 1
    assert "401 Unauthorized" in another.stderr


@pytest.mark.parametrize(("version", "logged"), [("1", "model_loaded"), ("2", "not found")])
def test_a_shared_access_signature_of_azure_is_a_variable(
    version: str, logged: str, store: Path, tmp_path: Path
) -> None:
    """It opens a container; in the URI it would be in logs."""
    with FakeAzureStore(tmp_path) as azure:
        azure.publish(store / "iris" / "1")
        settings = azure.environment | {"MODEL_CACHE_DIR": str(tmp_path / "cache")}
        settings["AZURE_STORAGE_SAS_TOKEN"] = azure.shared_access_signature
        del settings["AZURE_STORAGE_ACCOUNT_KEY"]
        with start("model_load", f"{azure.uri}/iris/{version}", **settings) as server:
            wait_until(lambda: logged in "".join(server.logged))

    signature = azure.shared_access_signature.rpartition("sig=")[2]
    assert signature not in "".join(server.logged)
