"""`make audit` with fake services on loopback, fake scanners, and invalid input."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from release.__main__ import cli
from release.audit import end_of_life, vulnerabilities
from tests.audit_services import JINJA2, AuditServices, Behaviour, audit_services

ROOT = Path(__file__).parent.parent.parent
CLEAN = "click==8.5.1 ; sys_platform == 'win32' \\\n    --hash=sha256:00\n    # via typer\n"
VULNERABLE = f"{CLEAN}jinja2==2.10 \\\n    --hash=sha256:00\n"
# The fields of a result that GitHub's documentation of SARIF requires.
SARIF = {
    "version": "2.1.0",
    "runs": [
        {
            "tool": {"driver": {"name": "scanner", "rules": []}},
            "results": [
                {
                    "ruleId": "CVE-2026-1-libssl3",
                    "message": {"text": "A high vulnerability in deb package: libssl3"},
                    "locations": [],
                }
            ],
        }
    ],
}


@pytest.fixture
def services() -> Iterator[AuditServices]:
    with audit_services() as running:
        yield running


class Project:
    """A directory with the files that the audit reads; PATH has only programs of the test."""

    def __init__(
        self, directory: Path, services: AuditServices, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.directory = directory
        self.monkeypatch = monkeypatch
        self.programs = directory / "bin"
        self.programs.mkdir()
        self.environment = {
            "PATH": str(self.programs),
            "PYTHONPATH": str(ROOT),
            "HOME": str(directory),
            **services.environment,
        }
        self.lock("serving/requirements.txt", CLEAN)
        self.lock("requirements.txt", CLEAN)
        self.lock("requirements-dev.txt", CLEAN)
        self.base("3.13-slim-trixie")

    def lock(self, name: str, text: str) -> None:
        (self.directory / name).parent.mkdir(exist_ok=True)
        (self.directory / name).write_text(text)

    def base(self, tag: str) -> None:
        for mode in ("model_in_image", "model_load"):
            dockerfile = self.directory / f"Dockerfile.{mode}"
            dockerfile.write_text(f"# A comment.\nARG BASE_IMAGE=python:{tag}\nFROM scratch\n")

    def program(self, name: str, script: str) -> None:
        path = self.programs / name
        path.write_text(f"#!{sys.executable}\n{script}")
        path.chmod(0o755)

    def audit(self, *options: str) -> Result:
        """Run the command of the audit, here in this process because that is faster."""
        with self.monkeypatch.context() as patch:
            patch.chdir(self.directory)
            for name, value in self.environment.items():
                patch.setenv(name, value)
            return CliRunner().invoke(cli, ["audit", *options])

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def project(services: AuditServices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return Project(tmp_path, services, monkeypatch)


def verdict(printed: str) -> str:
    return printed.splitlines()[-1]


def test_a_vulnerable_pin_and_a_python_past_end_of_life_are_found(
    project: Project, services: AuditServices
) -> None:
    services.vulnerable["jinja2", "2.10"] = JINJA2
    services.ends["python"] = {"3.9": "2025-10-31"}
    project.lock("requirements.txt", VULNERABLE)
    project.base("3.9-slim-trixie@sha256:00")

    audit = project.run(sys.executable, "-m", "release", "audit")

    assert audit.returncode == 1, audit.stderr
    vulnerability, end = audit.stdout.splitlines()[:2]
    assert vulnerability.startswith("jinja2 2.10: PYSEC-2021-66 ")
    assert "CVE-2020-28493" in vulnerability
    assert vulnerability.endswith(", fixed in 2.11.3 (requirements.txt)")
    assert end.startswith("python 3.9: past end of life since 2025-10-31")
    assert end.endswith("(Dockerfile.model_in_image, Dockerfile.model_load)")
    assert verdict(audit.stdout) == "exit status 1: 2 found"


def test_the_last_line_of_make_audit_has_the_exit_status(
    project: Project, services: AuditServices
) -> None:
    """Make itself exits with 2 for every failed recipe."""
    services.vulnerable["jinja2", "2.10"] = JINJA2
    project.lock("requirements.txt", VULNERABLE)
    shutil.copy(ROOT / "Makefile", project.directory)
    python = project.directory / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)

    project.environment["PATH"] = os.environ["PATH"]

    made = project.run("make", "--old-file=.venv/installed", "audit")

    assert made.returncode == 2, made.stderr
    assert verdict(made.stdout) == "exit status 1: 1 found"


def test_nothing_found_passes_and_names_the_services_and_the_time(project: Project) -> None:
    audit = project.audit()

    assert audit.exit_code == 0
    now = datetime.now(UTC)
    minutes = [f"{now - timedelta(minutes=back):%Y-%m-%d %H:%M} UTC" for back in (0, 1)]
    note = "1 of 1 package versions: pip-audit, osv, as of "
    assert any(f"{note}{minute}\n" in audit.stdout for minute in minutes)
    assert "python 3.13: supported until 2999-12-31, source: http://127.0.0.1" in audit.stdout
    assert "debian trixie: supported until 2999-12-31" in audit.stdout
    assert "images: not checked: no scanner installed\n" in audit.stdout
    assert "kubernetes: not checked: " in audit.stdout
    assert verdict(audit.stdout) == "exit status 0: nothing found"


def test_every_pin_is_checked_whatever_its_markers(
    project: Project, services: AuditServices
) -> None:
    """A lock is for every platform; pip-audit alone would skip packages of other platforms."""
    services.vulnerable["jinja2", "2.10"] = JINJA2
    for name in ("serving/requirements.txt", "requirements-dev.txt"):
        project.lock(name, "--index-url https://pypi.org/simple\njinja2==2.10 ; os_name == 'nt'\n")
    project.lock("requirements.txt", "Jinja2[i18n]==3.1.6\n")

    findings = json.loads(project.audit("--format=json").stdout)["findings"]

    assert [finding["where"] for finding in findings] == [
        ["serving/requirements.txt", "requirements-dev.txt"]
    ]
    # Two versions of one package, which pip-audit rejects in one call.
    assert {("jinja2", "2.10"), ("jinja2", "3.1.6")} <= set(services.queries)


def test_json_has_the_complete_result(project: Project, services: AuditServices) -> None:
    services.ends["numpy"] = {"2.1": "2026-08-19"}
    project.lock("serving/requirements.txt", "numpy==2.1.3\n")

    audit = project.audit("--format=json")

    result = json.loads(audit.stdout)
    assert audit.exit_code == result["status"] == 1
    assert result["failed"] is True
    (finding,) = result["findings"]
    assert (finding["name"], finding["version"]) == ("numpy", "2.1.3")
    assert finding["problem"].startswith("past end of life since 2026-08-19")
    assert result["unchecked"] == []


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("hangs", "timed out"),
        ("fails", "503"),
        ("unexpected", "vulns"),
    ],
)
def test_a_failing_vulnerability_service_is_not_a_pass(
    behaviour: Behaviour, reason: str, project: Project, services: AuditServices,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    services.osv = behaviour
    monkeypatch.setattr(vulnerabilities, "OPTIONS", vulnerabilities.OPTIONS.replace("=10", "=1"))

    audit = project.audit()

    assert audit.exit_code == 2
    last = verdict(audit.stdout)
    assert last.startswith("exit status 2: nothing found; not checked: pip-audit, osv: ")
    assert reason in last


def test_an_advisory_that_pip_audit_cannot_read_is_not_a_pass(
    project: Project, services: AuditServices
) -> None:
    """pip-audit skips the advisory, and only its log mentions it."""
    services.vulnerable["click", "8.5.1"] = {"id": "OSV-2026-1", "schema_version": "1.4.0"}

    audit = project.audit()

    assert audit.exit_code == 2
    assert "'OSV-2026-1' is missing 'affected' list" in verdict(audit.stdout)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [("hangs", "ReadTimeout"), ("fails", "503"), ("unexpected", "KeyError: 'result'")],
)
def test_a_failing_end_of_life_service_is_replaced_by_the_table(
    behaviour: Behaviour, reason: str, project: Project, services: AuditServices,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    services.endoflife = behaviour
    monkeypatch.setattr(end_of_life, "_REQUEST_SECONDS", 0.5)

    audit = project.audit()

    assert audit.exit_code == 2
    assert (
        "python 3.13: supported until 2029-10-31, source: the table of 2026-08-22" in audit.stdout
    )
    last = verdict(audit.stdout)
    assert last.startswith("exit status 2: nothing found; not checked: http://127.0.0.1")
    assert reason in last


def test_without_any_service_the_table_finds_a_python_past_end_of_life(project: Project) -> None:
    """A finding decides the exit status; the last line also names the failed services."""
    closed_port = "http://127.0.0.1:9"
    project.environment |= {"PIP_AUDIT_OSV_URL": closed_port, "ENDOFLIFE_URL": closed_port}
    project.base("3.10-slim-trixie")

    audit = project.audit()

    assert audit.exit_code == 1
    assert audit.stdout.startswith(
        "python 3.10: past end of life since 2026-10-31, source: the table"
    )
    assert verdict(audit.stdout).startswith("exit status 1: 1 found; not checked: pip-audit, osv: ")
    assert verdict(audit.stdout).count("Connection refused") == 2


def test_an_unknown_release_is_not_a_pass(project: Project) -> None:
    project.base("4.0-slim-trixie")

    audit = project.audit()

    assert audit.exit_code == 2
    assert verdict(audit.stdout).endswith(": no date of python 4.0")


def test_the_table_has_every_release_of_this_project(project: Project) -> None:
    project.environment["ENDOFLIFE_URL"] = "http://127.0.0.1:9"
    for name in ("Dockerfile.model_in_image", "Dockerfile.model_load"):
        shutil.copy(ROOT / name, project.directory)
    shutil.copy(ROOT / "serving" / "requirements.txt", project.directory / "serving")

    audit = project.audit()

    assert "numpy 2." in audit.stdout
    assert "no date of" not in audit.stdout


# The output of pip-audit 2.10.1 if PyPI responds with 404; its exit status is 0.
SKIPPED = """
import json
print(json.dumps({"dependencies": [
    {"name": "click", "skip_reason": "Dependency not found on PyPI and could not be audited"},
], "fixes": []}))
"""


def test_a_version_that_the_service_does_not_know_is_not_a_pass(project: Project) -> None:
    stub = project.directory / "stub" / "pip_audit"
    stub.mkdir(parents=True)
    (stub / "__init__.py").touch()
    (stub / "__main__.py").write_text(SKIPPED)
    project.environment["PYTHONPATH"] = f"{stub.parent}{os.pathsep}{ROOT}"

    audit = project.audit()

    assert audit.exit_code == 2
    assert "0 of 1 package versions" in audit.stdout
    assert verdict(audit.stdout).endswith("Dependency not found on PyPI and could not be audited")
    assert not (project.directory / ".venv").exists()


def test_a_result_is_cached_for_a_day(project: Project, services: AuditServices) -> None:
    click = ("click", "8.5.1")
    services.vulnerable["jinja2", "2.10"] = JINJA2
    project.lock("requirements.txt", VULNERABLE)
    first = project.audit()

    services.osv = "fails"
    again = project.audit()

    assert again.exit_code == first.exit_code == 1
    assert again.stdout == first.stdout
    assert services.queries.count(click) == 1

    (kept,) = (project.directory / ".venv" / "audit").iterdir()
    time, answers = json.loads(kept.read_text())
    yesterday = datetime.fromisoformat(time) - timedelta(days=1)
    kept.write_text(json.dumps([str(yesterday), answers]))
    services.osv = "answers"

    later = project.audit()

    assert later.stdout.splitlines()[0] == first.stdout.splitlines()[0]
    assert services.queries.count(click) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "[1, []]", '["soon", []]'])
def test_a_broken_cache_is_written_again(
    content: str, project: Project, services: AuditServices
) -> None:
    project.audit()
    (kept,) = (project.directory / ".venv" / "audit").iterdir()
    kept.write_text(content)

    assert project.audit().exit_code == 0
    assert services.queries.count(("click", "8.5.1")) == 2


def test_a_failure_is_not_cached(project: Project, services: AuditServices) -> None:
    services.osv = "fails"
    assert project.audit().exit_code == 2

    services.osv = "answers"

    assert project.audit().exit_code == 0


@pytest.mark.parametrize("line", ["click>=8", "click==8.*", "click", "-r more.txt", "./click.whl"])
def test_a_line_that_pins_no_version_is_an_error(line: str, project: Project) -> None:
    """Otherwise its packages would silently not be checked."""
    project.lock("own.txt", f"{CLEAN}{line}\n")

    audit = project.audit("--lock=own.txt")

    assert audit.exit_code == 2
    assert audit.stderr.startswith("exit status 2: LOCK: own.txt: expected only lines such as")
    assert line in audit.stderr


@pytest.mark.parametrize("text", [None, "# nothing\n"])
def test_a_file_that_is_not_a_lock_is_an_error(text: str | None, project: Project) -> None:
    if text:
        project.lock("own.txt", text)

    audit = project.audit("--lock=own.txt")

    assert audit.exit_code == 2
    assert "own.txt" in audit.stderr


def test_a_base_image_without_a_python_is_an_error(project: Project) -> None:
    (project.directory / "Dockerfile.model_load").write_text("ARG BASE_IMAGE=alpine\n")

    audit = project.audit()

    assert audit.exit_code == 2
    assert "Dockerfile.model_load: expected a line such as ARG BASE_IMAGE=python:" in audit.stderr


SCANNERS = {
    "grype": ["--only-fixed", "sbom:sbom/model_load_1.cdx.json"],
    "trivy": ["--ignore-unfixed", "sbom/model_load_1.cdx.json"],
    "osv-scanner": ["--lockfile=sbom/model_load_1.cdx.json"],
}


@pytest.mark.parametrize("name", SCANNERS)
def test_a_scanner_on_the_path_reads_the_sboms(name: str, project: Project) -> None:
    (project.directory / "sbom").mkdir()
    (project.directory / "sbom" / "model_load_1.cdx.json").write_text("{}")
    # osv-scanner ends with 1 if it finds anything.
    project.program(
        name,
        f"import json, sys\nopen('arguments', 'w').write(json.dumps(sys.argv))\n"
        f"print(json.dumps({SARIF!r}))\nsys.exit({int(name == 'osv-scanner')})\n",
    )

    audit = project.audit()

    assert audit.exit_code == 1
    assert audit.stdout.startswith(
        "image model_load_1: CVE-2026-1-libssl3: A high vulnerability in deb package: libssl3 "
        "(sbom/model_load_1.cdx.json)"
    )
    assert f"images: {name}, 1 SBOMs" in audit.stdout
    arguments = json.loads((project.directory / "arguments").read_text())
    assert set(SCANNERS[name]) <= set(arguments)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import sys; sys.exit('cannot download the database')", "cannot download the database"),
        ("import sys; print('{}'); sys.exit(127)", "exit status 127"),
        ("print('no JSON')", "Expecting value"),
        ("print('{}')", "runs"),
    ],
)
def test_a_scanner_that_fails_is_not_a_pass(script: str, reason: str, project: Project) -> None:
    (project.directory / "sbom").mkdir()
    (project.directory / "sbom" / "model_load_1.cdx.json").write_text("{}")
    project.program("grype", script)

    audit = project.audit()

    assert audit.exit_code == 2
    assert "not checked: grype: sbom/model_load_1.cdx.json: " in verdict(audit.stdout)
    assert reason in verdict(audit.stdout)


def test_a_scanner_without_sboms_is_only_a_note(project: Project) -> None:
    project.program("trivy", "raise SystemExit(9)")

    audit = project.audit()

    assert audit.exit_code == 0
    assert "images: not checked: no SBOM, `make sbom` writes them" in audit.stdout


KUBECTL = """
import json, sys
if sys.argv[1] == "config":
    print("kind-inference")
else:
    print(json.dumps({"serverVersion": {"major": "1", "gitVersion": "v1.33.5-gke.1"}}))
"""


def test_a_kubernetes_past_end_of_life_is_found(project: Project, services: AuditServices) -> None:
    services.ends["kubernetes"] = {"1.33": "2026-06-28"}
    project.program("kubectl", KUBECTL)

    audit = project.audit()

    assert audit.exit_code == 1
    assert audit.stdout.startswith("kubernetes 1.33.5: past end of life since 2026-06-28")


def test_a_cluster_that_does_not_answer_is_only_a_note(project: Project) -> None:
    """The cluster belongs to the user; it is not a service of the audit."""
    project.program(
        "kubectl", "import sys\nif sys.argv[1] != 'config': sys.exit('refused')\nprint('x')"
    )

    audit = project.audit()

    assert audit.exit_code == 0
    assert "kubernetes: not checked: kubectl version: refused" in audit.stdout
