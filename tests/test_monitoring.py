"""k8s/monitoring and docs/runbook.md against running servers, and against a real Prometheus.

Rules and dashboard may use only what a server really says; each alert is seen to fire, and its
section of the runbook is there.
"""

import json
import math
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from release.kubernetes.manifests import kustomize
from release.local.server_process import ServerProcess
from tests.artifacts import flipped_byte, rewrite
from tests.fakes import FakeFileStore, unavailable
from tests.manifests import ROOT, SERVERS, Object, named, only, render, server_of
from tests.onnx_files import FLOAT, INT64, save
from tests.prometheus import MONITORING, RULES, Pod, Prometheus, program
from tests.promql import Selector, read
from tests.servers import connect, start, wait_until, workers
from training.import_onnx import make_contract

# In one process, with one Prometheus.
pytestmark = pytest.mark.xdist_group("monitoring")

DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
UNIT_TESTS = ROOT / "tests" / "monitoring" / "alerts.yaml"
GROUPS = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
EVERY_RULE = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = [rule for rule in EVERY_RULE if "alert" in rule]
NAMES = sorted({rule["alert"] for rule in ALERTS})
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

# What scrape.yaml adds to every series, as a test below finds it.
SCRAPED = frozenset(
    {"namespace", "pod", "track", "app_kubernetes_io_instance", "app_kubernetes_io_name"}
)
# What series add to the name of their metric.
PART = re.compile(r"_(bucket|sum|count|total)$")
# What Grafana puts into a query where everything is chosen.
CHOSEN = {"$release": ".*", "$track": ".*", "$__rate_interval": "1m"}
FLOWER = [[5.9, 3.0, 4.2, 1.5]]
# More than the least traffic and the most requests in flight of any rule, as they stand there.
MANY = 200
MANAGED = {"MANAGEMENT_PORT": "0"}

Series = list[tuple[str, dict[str, str]]]


def filled_in(query: str, namespace: str) -> str:
    """A query of the dashboard as Prometheus gets it."""
    for variable, value in (CHOSEN | {"$namespace": namespace}).items():
        query = query.replace(variable, value)
    return query


def dashboard_queries(namespace: str = ".*") -> list[str]:
    """Those of its panels and of its variables."""
    variables = [
        each["definition"] for each in DASHBOARD["templating"]["list"] if "definition" in each
    ]
    selected = [re.fullmatch(r"label_values\((.+), (\w+)\)", each) for each in variables]
    queries = [target["expr"] for panel in PANELS for target in panel["targets"]]
    queries += [f"count by ({each[2]}) ({each[1]})" for each in selected if each]
    assert len(selected) == len([each for each in selected if each])
    return [filled_in(query, namespace) for query in queries]


def runbook_queries() -> list[str]:
    return [block.strip() for block in re.findall(r"```promql\n(.*?)```", RUNBOOK, re.DOTALL)]


def unknown(query: str, series: Series) -> list[str]:
    """Return the series and labels of a query that no server has."""
    parsed = read(query)
    problems = [
        f"no series {selected}"
        for selected in (selector.without(SCRAPED) for selector in parsed.selectors)
        if not any(selected.selects(*each) for each in series)
    ]
    metrics = {selector.metric for selector in parsed.selectors}
    labels = {label for metric, labels in series if metric in metrics for label in labels}
    return problems + [f"no label {each}" for each in sorted(parsed.groupings - labels - SCRAPED)]


def request_every_endpoint(url: str) -> None:
    """Ask in every way there is to predict, and once wrongly."""
    tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": FLOWER}
    with httpx.Client(base_url=url, timeout=20) as client:
        for path in ("/predict", "/predict/label"):
            client.post(path, json={"data": FLOWER}).raise_for_status()
        client.post("/v2/models/flowers/infer", json={"inputs": [tensor]}).raise_for_status()
        assert client.post("/predict", json={"data": "flower"}).status_code == 400


class Followed:
    """A server that follows an alias in a store of its own, which is at version 1 of two."""

    def __init__(self, versions: Path, directory: Path, **settings: str) -> None:
        self._versions, self._directory = versions, directory
        self._store = FakeFileStore(directory)
        for version in ("1", "2"):
            self._store.publish(versions / "flowers" / version)
        self.move("1")
        uri = str(directory / "models" / "flowers@stable")
        self.server = start("model_load", uri, **MANAGED, MODEL_POLL_SECONDS="0.2", **settings)

    def move(self, version: str) -> None:
        """Let the alias name another version."""
        self._store.put("flowers/aliases/stable", f"{version}\n".encode())

    def publish_corrupt(self, version: str) -> None:
        """Publish a version whose model is not what its contract says."""
        artifact = self._directory / "corrupt" / "flowers" / version
        shutil.copytree(self._versions / "flowers" / "2", artifact)
        rewrite(artifact, version=version)
        flipped_byte(artifact)
        self._store.publish(artifact)

    def spoil(self, version: str) -> None:
        """Change a version in its place, as nobody should."""
        path = f"flowers/{version}/model.onnx"
        self._store.put(path, self._store.get(path)[:-1])

    def served(self) -> str:
        """The version that an answer names."""
        answer = httpx.post(f"{self.server.url}/predict", json={"data": FLOWER}, timeout=20)
        return answer.headers["model-version"]


@pytest.fixture(scope="module")
def following(
    two_csv_versions: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Followed]:
    """A healthy server that has followed its alias from version 1 to 2 and served requests."""
    followed = Followed(two_csv_versions, tmp_path_factory.mktemp("following"))
    followed.server.wait_until_ready()
    followed.move("2")
    wait_until(lambda: followed.served() == "2")
    request_every_endpoint(followed.server.url)
    yield followed
    assert followed.server.stop() == 0


@pytest.fixture(scope="module")
def series(following: Followed) -> Series:
    """The series of a server, of Prometheus's scrapes, and of the recording rules."""
    text = httpx.get(f"{following.server.management_url}/metrics").text
    scraped = [
        (sample.name, sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]
    recorded: Series = [(rule["record"], {}) for rule in EVERY_RULE if "record" in rule]
    return [*scraped, *recorded, ("up", {})]


def families(series: Series) -> set[str]:
    """The metrics of the server itself, by the names that its user reads."""
    own = {metric for metric, _ in series if metric != "up" and ":" not in metric}
    return {metric if metric.endswith("_total") else PART.sub("", metric) for metric in own}


@pytest.fixture(scope="module")
def thirsty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes as much memory as its input says."""
    path = tmp_path_factory.mktemp("thirsty")
    save(
        path / "thirsty.onnx",
        [("floats", INT64, ["N", 1])],
        [("zero", FLOAT, ["N", 1])],
        [
            ("ReduceMax", ["floats"], ["most"]),
            ("Reshape", ["most", "one"], ["size"]),
            ("ConstantOfShape", ["size"], ["memory"]),
            ("ReduceSum", ["memory"], ["sum"]),
            ("Shape", ["floats"], ["shape"]),
            ("Expand", ["sum", "shape"], ["zero"]),
        ],
        [("one", np.array([1], np.int64))],
    )
    made = make_contract(
        onnx_file=path / "thirsty.onnx",
        name="thirsty", version="1", store=path / "store", purpose="run out of memory",
    )  # fmt: skip
    return Path(made)


@dataclass(frozen=True)
class Cluster:
    """Servers to plant faults in, each in a namespace of that name, and who watches them."""

    prometheus: Prometheus
    following: Followed
    changed: Followed
    thirsty: ServerProcess
    waiting: ServerProcess
    away: ServerProcess

    def firing(self, namespace: str, *alerts: str) -> dict[str, dict[str, str]]:
        """Return what fires for a namespace, once these alerts do: the words of each."""
        found: dict[str, dict[str, str]] = {}

        def fire() -> bool:
            found.clear()
            found.update(self.prometheus.firing(namespace))
            return set(alerts) <= found.keys()

        wait_until(fire, 30)
        return found


@pytest.fixture(scope="module")
def cluster(
    following: Followed,
    thirsty: Path,
    two_csv_versions: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Cluster]:
    """All at once, for Prometheus takes seconds to find what is new."""
    first, second = (two_csv_versions / "flowers" / version for version in ("1", "2"))
    with ExitStack() as ending:
        prometheus = ending.enter_context(Prometheus(tmp_path_factory.mktemp("prometheus")))

        def serving(artifact: Path) -> ServerProcess:
            return ending.enter_context(start("model_in_image", artifact, **MANAGED))

        changed = Followed(two_csv_versions, tmp_path_factory.mktemp("changed"), WORKERS="2")
        ending.enter_context(changed.server)
        away, waiting = serving(first), serving(first)
        servers = {
            "following": [following.server],
            "changed": [changed.server],
            "different": [serving(first), serving(second)],
            "thirsty": [serving(thirsty)],
            "waiting": [waiting],
            "away": [away],
        }
        pods = [
            Pod(namespace, f"pod-{number}", server.wait_until_ready(), template_of(server.mode))
            for namespace, replicas in servers.items()
            for number, server in enumerate(replicas)
        ]
        prometheus.discover(pods)
        # More than once, for a rate is one between two values.
        seen = "count_over_time((up == 1)[20s:1s]) > 2"
        wait_until(lambda: len(prometheus.query(seen)) == len(pods), 60)
        yield Cluster(prometheus, following, changed, servers["thirsty"][0], waiting, away)


def template_of(mode: str) -> Any:
    """A template of pods of a mode."""
    overlay = "model_load/volume" if mode == "model_load" else mode
    return only(render(overlay), "Deployment")["spec"]["template"]


# ---- What rules and dashboard ask for


def test_rules_dashboard_and_runbook_use_only_what_a_server_says(series: Series) -> None:
    """A misspelt metric is no error to Prometheus: the alert would never fire."""
    queries = [rule["expr"] for rule in EVERY_RULE] + dashboard_queries() + runbook_queries()

    assert {query: unknown(query, series) for query in queries if unknown(query, series)} == {}


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("sum(model_degrade) > 0", "no series Selector(metric='model_degrade'"),
        ('rate(http_requests_total{status="500"}[5m])', "no series Selector("),
        ('rate(http_requests_total{endpoint=~"/predic"}[5m])', "no series Selector("),
        ('rate(http_requests_total{code="5xx"}[5m])', "no series Selector("),
        ("sum by (version) (model_rows_total)", "no label version"),
        ("model_rows_total / on (shard) model_rows_total", "no label shard"),
        ("track:prediction:rate5m", "no series Selector("),
    ],
)
def test_what_no_server_says_is_found(query: str, problem: str, series: Series) -> None:
    assert [found[: len(problem)] for found in unknown(query, series)] == [problem]


def test_what_a_query_reads_is_read() -> None:
    found = read(
        'sum by (a, le) (rate(m_bucket{a=~"x|y{z}", b!="c, d"}[5m])) / on (a) group_left () n:o'
        " > 14.4 * 0.001 and min_over_time(p[1h:1m] offset 5m) or absent(q)"
    )

    matchers = (("a", "=~", "x|y{z}"), ("b", "!=", "c, d"))
    metrics = (Selector("m_bucket", matchers), *(Selector(name) for name in ("n:o", "p", "q")))
    assert found.selectors == metrics
    assert found.groupings == {"a", "le"}


def test_every_metric_of_a_server_is_watched(series: Series) -> None:
    """By the dashboard; one that nobody looks at is there for nothing."""
    used = {selector.metric for query in dashboard_queries() for selector in read(query).selectors}

    assert (
        families(series) - {name for each in used for name in (each, PART.sub("", each))} == set()
    )


def test_every_metric_of_a_server_is_documented(series: Series) -> None:
    rows = re.findall(r"^\| `(\w+)(?:\{([^}]*)\})?` \|", PAGE, re.MULTILINE)
    documented = {name: set(labels.split(",")) - {""} for name, labels in rows}

    text = {name: set[str]() for name in families(series)}
    for metric, labels in series:
        name = metric if metric in text else PART.sub("", metric)
        if name in text:
            text[name] |= labels.keys() - {"le"}
    assert documented == text


# ---- The runbook


def test_the_runbook_has_a_section_for_each_alert_and_no_other() -> None:
    assert sorted(re.findall(r"^## (.+)$", RUNBOOK, re.MULTILINE)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_alert_has_a_section_with_meaning_checks_fix_and_test(name: str) -> None:
    section = re.split(r"^## ", RUNBOOK.split(f"\n## {name}\n")[1], flags=re.MULTILINE)[0]

    assert re.findall(r"^\*\*(\w+)\.\*\*", section, re.MULTILINE) == [
        "Meaning",
        "Check",
        "Fix",
        "Tested",
    ]


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_with_values_and_where_its_section_is(rule: Object) -> None:
    annotations = rule["annotations"]

    assert rule["labels"]["severity"] in ("critical", "warning")
    assert annotations.keys() == {"summary", "description", "runbook_url"}
    assert "$labels" in annotations["summary"]
    assert "$labels" in annotations["description"]
    assert annotations["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"


def test_every_command_of_the_runbook_is_a_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))

    commands = set(re.findall(r"make ([a-z-]+)", RUNBOOK))
    assert commands
    assert commands <= targets


def test_every_event_of_the_runbook_is_logged() -> None:
    """An event that is never logged would make a broken server look healthy."""
    written = "".join(
        file.read_text(encoding="utf-8")
        for folder in ("artifact", "serving", "model_load")
        for file in (ROOT / folder).rglob("*.py")
    )

    events = set(re.findall(r'"event": "(\w+)"', RUNBOOK))
    assert events
    assert {event for event in events if f'"{event}"' not in written} == set()


# ---- The rules by themselves


@pytest.mark.parametrize("command", [("check", RULES), ("test", UNIT_TESTS)], ids=["check", "test"])
def test_promtool_finds_nothing_wrong_with_the_rules(command: tuple[str, Path]) -> None:
    verb, file = command
    done = subprocess.run(
        [program("promtool"), verb, "rules", str(file)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tested_to_fire_and_to_be_silent() -> None:
    tests = yaml.safe_load(UNIT_TESTS.read_text(encoding="utf-8"))["tests"]
    expected = [each for test in tests for each in test["alert_rule_test"]]

    assert sorted({each["alertname"] for each in expected if each["exp_alerts"]}) == NAMES
    assert sorted({each["alertname"] for each in expected if not each["exp_alerts"]}) == NAMES


# ---- The manifests


def test_rules_and_dashboard_are_applied_as_they_are() -> None:
    """The dashboard's ConfigMap with the label that Grafana's sidecar looks for."""
    if shutil.which("kubectl") is None:
        unavailable("needs kubectl")
    objects = list(yaml.safe_load_all(kustomize({"resources": ["monitoring"]})))
    maps = {each["metadata"]["name"]: each for each in objects}

    assert {(each["kind"], each["metadata"]["namespace"]) for each in objects} == {
        ("ConfigMap", "monitoring")
    }
    assert yaml.safe_load(maps["inference-rules"]["data"]["inference.yaml"]) == {"groups": GROUPS}
    assert json.loads(maps["inference-dashboard"]["data"]["inference.json"]) == DASHBOARD
    assert maps["inference-dashboard"]["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert "grafana_dashboard" not in maps["inference-rules"]["metadata"]["labels"]


@pytest.mark.parametrize("overlay", SERVERS)
def test_pods_say_where_they_are_scraped(overlay: str) -> None:
    """On the port that the NetworkPolicy opens to the namespace `monitoring`."""
    template = only(render(overlay), "Deployment")["spec"]["template"]
    management = named(server_of(template["spec"])["ports"], "management")
    annotations = template["metadata"]["annotations"]

    assert {key: value for key, value in annotations.items() if "prometheus" in key} == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(management["containerPort"]),
        "prometheus.io/path": "/metrics",
    }


# ---- The dashboard


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_and_in_which_unit(panel: Object) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


def test_panels_have_ids_and_places_of_their_own() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert len(ids) == len(set(ids))
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_the_dashboard_draws_the_thresholds_of_the_alerts() -> None:
    """The rules and the dashboard must not state different thresholds."""
    drawn = {
        panel["title"]: panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"]
        for panel in PANELS
        if "thresholds" in panel["fieldConfig"]["defaults"]
    }
    stated = {rule["alert"]: re.findall(r"> ([\d.* ]+)", rule["expr"]) for rule in ALERTS}

    assert drawn == {
        "Failed predictions": float(stated["PredictionsFail"][0].split("*")[1]),
        "Prediction latency": float(stated["PredictionsSlow"][0]),
        "Requests in flight": float(stated["RequestsPileUp"][0]),
        "Time since the alias was read": float(stated["AliasNotRead"][0]),
    }


# ---- A real Prometheus


def test_servers_are_found_once_with_the_labels_that_rules_need(cluster: Cluster) -> None:
    """Though a pod has two ports."""
    found = [each["labels"] for each in cluster.prometheus.targets()]

    assert len(found) == len({(each["namespace"], each["pod"]) for each in found}) == 7
    for labels in found:
        assert labels.keys() == SCRAPED | {"instance", "job"}
        assert labels["track"] == "stable"
    assert {each["app_kubernetes_io_instance"] for each in found} == {
        "iris-model-in-image",
        "iris-model-load",
    }


def test_every_query_is_one_to_prometheus(cluster: Cluster) -> None:
    for query in dashboard_queries() + runbook_queries():
        cluster.prometheus.query(query)
    with pytest.raises(httpx.HTTPStatusError):
        cluster.prometheus.query("sum by track (up)")


def test_each_panel_shows_something_of_a_healthy_server_and_no_alert_fires(
    cluster: Cluster,
) -> None:
    """A ratio of what never happened is no number, and so an empty panel."""
    queries = dashboard_queries("following")

    def empty() -> list[str]:
        request_every_endpoint(cluster.following.server.url)
        return [
            query
            for query in queries
            if not any(
                math.isfinite(float(each["value"][1])) for each in cluster.prometheus.query(query)
            )
        ]

    wait_until(lambda: empty() == [])
    wait_until(lambda: cluster.firing("following") == {})


def test_a_corrupt_version_that_the_alias_names_fires(cluster: Cluster) -> None:
    """And no more, once the alias is back: what the runbook says to do."""
    cluster.following.publish_corrupt("3")
    cluster.following.move("3")

    assert cluster.firing("following", "ModelDegraded")
    assert cluster.following.served() == "2"
    assert "sha256" in httpx.get(f"{cluster.following.server.url}/metadata").json()["degraded"]
    assert cluster.following.server.events("model_refused")

    cluster.following.move("2")
    wait_until(lambda: cluster.firing("following") == {})


def test_a_version_that_was_changed_in_its_place_fires(cluster: Cluster) -> None:
    """The replacement of a worker cannot open the model; the other worker keeps serving."""
    cluster.changed.spoil("1")
    os.kill(min(workers(str(cluster.changed.server.management_url))), signal.SIGKILL)

    assert cluster.firing("changed", "ModelOpenFailures")
    assert cluster.changed.server.events("model_not_opened")
    assert cluster.changed.served() == "1"


def test_two_models_in_one_track_fire(cluster: Cluster) -> None:
    assert cluster.firing("different", "ReplicasServeDifferentModels")


def test_predictions_that_fail_fire(cluster: Cluster) -> None:
    with httpx.Client(base_url=cluster.thirsty.url, timeout=20) as client:
        statuses = {
            client.post("/predict", json={"data": [[10**15]]}).status_code for _ in range(MANY)
        }

    assert statuses == {500}
    assert cluster.firing("thirsty", "PredictionsFail")
    assert cluster.thirsty.events("request_failed")


def test_requests_that_are_not_answered_fire_and_so_do_late_answers(cluster: Cluster) -> None:
    """Their bodies come late, which is as good as a model that takes its time."""
    body = json.dumps({"data": FLOWER}).encode()
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    with ExitStack() as ending:
        connections = [ending.enter_context(connect(cluster.waiting.url)) for _ in range(MANY)]
        for each in connections:
            each.sendall(head % len(body))

        assert cluster.firing("waiting", "RequestsPileUp")

        for each in connections:
            each.sendall(body)
        for each in connections:
            with each.makefile("rb") as answer:
                assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
    assert cluster.firing("waiting", "PredictionsSlow")


def test_a_server_that_is_away_fires_with_words_for_it(cluster: Cluster) -> None:
    """It was the only one, so there is none, too."""
    cluster.away.stop()

    fired = cluster.firing("away", "ServerDown", "NoServer")

    assert fired["ServerDown"] == {
        "summary": "away: pod-0 does not respond",
        "description": "pod-0 of iris-model-in-image, track stable, has not responded to "
        "Prometheus for 5 minutes.",
        "runbook_url": "docs/runbook.md#serverdown",
    }
