"""A Prometheus on loopback, with the project's rules, that finds servers as in a cluster.

Used by test_monitoring.py. It scrapes and evaluates every second, and what is minutes in the rules
is seconds; everything else is as in k8s/monitoring.
"""

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import yaml

from release.local.server_process import ServerProcess
from tests.fakes import announced, unavailable
from tests.manifests import K8S, Object

MONITORING = K8S / "monitoring"
RULES = MONITORING / "rules.yaml"
_SCRAPE = MONITORING / "scrape.yaml"


def program(name: str) -> str:
    """Return where a program of Prometheus's is, or the test has no meaning."""
    found = shutil.which(name)
    if found is None:
        unavailable(f"{name} is not installed: apt-get install prometheus")
    return found


class Prometheus:
    """One `prometheus`, started when made, ended by stop(). directory: an empty one for it."""

    def __init__(self, directory: Path) -> None:
        command = program("prometheus")
        self._targets = directory / "targets.json"
        self._beside = directory / "being-written"
        self._write_targets([])
        (directory / "rules.yaml").write_text(_impatient(), encoding="utf-8")
        configuration = yaml.safe_load(_SCRAPE.read_text(encoding="utf-8"))
        (job,) = configuration["scrape_configs"]
        # In a cluster the API server says what there is; Debian's build cannot even ask it.
        del job["kubernetes_sd_configs"]
        job["file_sd_configs"] = [{"files": [str(self._targets)], "refresh_interval": "1s"}]
        configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        configuration["rule_files"] = ["rules.yaml"]
        file = directory / "prometheus.yaml"
        file.write_text(yaml.safe_dump(configuration), encoding="utf-8")
        with ExitStack() as ending:
            address = ending.enter_context(
                announced(
                    [
                        command,
                        f"--config.file={file}",
                        f"--storage.tsdb.path={directory / 'data'}",
                        "--web.listen-address=127.0.0.1:0",
                    ],
                    r'msg="Listening on" address=(127\.0\.0\.1:\d+)',
                )
            )
            url = f"http://{address}/api/v1"
            self._client = ending.enter_context(httpx.Client(base_url=url, timeout=20))
            self._ending = ending.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop Prometheus."""
        self._ending.close()

    def discover(self, pods: Iterable["Pod"]) -> None:
        """Make service discovery return exactly these pods; Prometheus reads it after seconds.

        Discovery lists a pod once for each of its ports. Only the scraped port differs from the
        template's: here the server listens on a free port.
        """
        self._write_targets(
            [
                {"targets": [f"127.0.0.1:{port['containerPort']}"], "labels": pod.about}
                for pod in pods
                for container in pod.template["spec"]["containers"]
                for port in container["ports"]
            ]
        )

    def targets(self) -> list[dict[str, Any]]:
        """Return what it scrapes."""
        found: list[dict[str, Any]] = self._query("targets", state="active")["activeTargets"]
        return found

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that a query has now. Raises HTTPStatusError if it is ill-formed."""
        found: list[dict[str, Any]] = self._query("query", query=expression)["result"]
        return found

    def firing(self, namespace: str) -> dict[str, dict[str, str]]:
        """Return the alerts that fire for a namespace: by name, their annotations."""
        return {
            alert["labels"]["alertname"]: alert["annotations"]
            for alert in self._query("alerts")["alerts"]
            if alert["state"] == "firing" and alert["labels"].get("namespace") == namespace
        }

    def _query(self, path: str, **parameters: str) -> Any:
        # By POST a query may be of any length; the others know GET alone.
        method = "POST" if path == "query" else "GET"
        value = {"data" if method == "POST" else "params": parameters}
        answer = self._client.request(method, f"/{path}", **value)  # type: ignore[arg-type]
        answer.raise_for_status()
        return answer.json()["data"]

    def _write_targets(self, found: list[dict[str, Any]]) -> None:
        self._beside.write_text(json.dumps(found), encoding="utf-8")
        self._beside.replace(self._targets)


@dataclass(frozen=True)
class Pod:
    """A server, as if it ran in a namespace as a pod of a Deployment's template."""

    namespace: str
    name: str
    server: ServerProcess
    template: Object

    @property
    def about(self) -> dict[str, str]:
        """What discovery says of it."""
        metadata, port = self.template["metadata"], urlsplit(str(self.server.management_url)).port
        annotations = metadata["annotations"] | {"prometheus.io/port": str(port)}
        return {
            "__meta_kubernetes_namespace": self.namespace,
            "__meta_kubernetes_pod_name": self.name,
            "__meta_kubernetes_pod_phase": "Running",
            **_meta("label", metadata["labels"]),
            **_meta("annotation", annotations),
        }


def _meta(kind: str, pairs: Mapping[str, str]) -> dict[str, str]:
    """Return labels or annotations by the names that discovery gives them."""
    return {
        f"__meta_kubernetes_pod_{kind}_{re.sub('[^a-zA-Z0-9_]', '_', name)}": value
        for name, value in pairs.items()
    }


def _impatient() -> str:
    """Return the rules with seconds for minutes, and no time to wait; thresholds as they are."""
    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        rule["expr"] = re.sub(r"\[(\d+)m\]", r"[\1s]", rule["expr"])
        rule.pop("for", None)
    return yaml.safe_dump(rules)
