"""The audit: what is planted is found, what cannot be asked fails, the data covers the locks."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from release.audit import pip_audit, refresh
from release.audit.advisories import ADVISORIES, Advisories, Advisory, Event, advisories, findings
from release.audit.end_of_life import END_OF_LIFE, dates, end_of_life
from release.audit.extract import AuditError
from release.audit.locks import IN_THE_IMAGES
from release.audit.report import Audit, as_json, show

ROOT = Path(__file__).parent.parent.parent
TODAY = date(2026, 11, 23)
CLEAN = "click==8.5.1 ; sys_platform == 'win32' \\\n    --hash=sha256:00\n    # via typer\n"


HEADER = {
    "source": "https://example.org/source",
    "commit": "0" * 40,
    "license": "none",
    "command": "make audit-data",
}
JINJA2 = {
    "id": "PYSEC-2021-66",
    "aliases": ["CVE-2020-28493"],
    "summary": "It can be made to take long.",
    "ranges": [[{"introduced": "0"}, {"fixed": "2.11.3"}]],
    "versions": [],
}
CERTIFI = {
    "id": "PYSEC-2022-42986",
    "aliases": [],
    "summary": "It trusts whom it should not.",
    "ranges": [[{"introduced": "0"}, {"fixed": "2022.12.7"}]],
    "versions": [],
}
PACKAGES = {"jinja2": [JINJA2], "certifi": [CERTIFI], "click": [], "rich": []}


def cycle(name: str, codename: str, until: str | bool, extended: str | bool) -> dict[str, Any]:  # noqa: FBT001
    return {"cycle": name, "codename": codename, "until": until, "extended": extended}


PRODUCTS = {
    "python": [
        cycle("3.13", "", "2029-10-31", extended=False),
        cycle("3.1", "", "2012-04-09", extended=False),
    ],
    "debian": [
        cycle("13", "trixie", "2028-08-09", "2030-06-30"),
        cycle("12", "bookworm", "2026-07-11", "2028-06-30"),
    ],
    **dict.fromkeys(("click", "certifi", "fastapi", "jinja2", "rich")),
}


@pytest.fixture(autouse=True)
def extracts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Small extracts, of two days; no test asks the network, whatever is installed."""
    monkeypatch.setenv("PIP_AUDIT", "/nowhere/pip-audit")
    data = tmp_path / "extracts"
    data.mkdir()
    for path, day, content in (
        (ADVISORIES, "2026-11-20", {"packages": PACKAGES}),
        (END_OF_LIFE, "2026-11-10", {"products": PRODUCTS}),
    ):
        (data / path.name).write_text(json.dumps({**HEADER, "date": day, **content}))
    monkeypatch.setattr("release.audit.advisories.ADVISORIES", data / ADVISORIES.name)
    monkeypatch.setattr("release.audit.end_of_life.END_OF_LIFE", data / END_OF_LIFE.name)
    for asked in (advisories, dates):
        asked.cache_clear()
    yield data
    for asked in (advisories, dates):
        asked.cache_clear()


@pytest.fixture
def dockerfile(tmp_path: Path) -> Path:
    path = tmp_path / "Dockerfile"
    path.write_text("ARG BASE_IMAGE=python:3.13-slim-trixie\n")
    return path


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """A lock of the images with nothing wrong in it."""
    path = tmp_path / IN_THE_IMAGES
    path.parent.mkdir()
    path.write_text(CLEAN)
    return path


def shown(audit: Audit, capsys: pytest.CaptureFixture[str]) -> str:
    show(audit)
    return " ".join(capsys.readouterr().out.split())


def test_a_planted_pin_is_found_and_named_with_its_fix(
    lock: Path,
    dockerfile: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    lock.write_text(f"{CLEAN}jinja2==2.10 \\\n    --hash=sha256:00\n")

    audit = Audit.of([lock], [dockerfile], TODAY)

    assert audit.failed
    found = {one.finding.advisory: one for one in audit.vulnerabilities}
    assert found["PYSEC-2021-66"].finding.package == "jinja2"
    assert found["PYSEC-2021-66"].finding.version == "2.10"
    assert found["PYSEC-2021-66"].finding.fixed == ("2.11.3",)
    assert "CVE-2020-28493" in found["PYSEC-2021-66"].finding.aliases
    assert found["PYSEC-2021-66"].locks == [f"{lock} (in the images)"]
    assert "2.11.3" in (text := shown(audit, capsys))
    assert f"found: {len(found)} vulnerabilities" in text
    assert json.loads(as_json(audit))["failed"] is True


def test_what_is_in_the_images_comes_first(lock: Path, dockerfile: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("certifi==2020.4.5\n")
    lock.write_text("jinja2==2.10\n")

    audit = Audit.of([other, lock], [dockerfile], TODAY)

    packages = [one.finding.package for one in audit.vulnerabilities]
    assert packages == sorted(packages, reverse=True)
    assert set(packages) == {"jinja2", "certifi"}


def test_a_clean_lock_passes_and_says_whom_it_asked(
    lock: Path, dockerfile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit = Audit.of([lock], [dockerfile], TODAY)

    assert not audit.failed
    text = shown(audit, capsys)
    assert f"the extract of {advisories().date}, for 1 of 1 packages" in text
    assert "(pip-audit: not installed)" in text
    assert text.endswith("found: nothing")


@pytest.mark.parametrize(
    "line", ["unheard-of==1.0", "click>=8", "click==8.*", "click", "-r more.txt", "./click.whl"]
)
def test_what_cannot_be_asked_fails(
    line: str, lock: Path, dockerfile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A package that was locked after the extract was made must not pass unseen."""
    lock.write_text(f"{CLEAN}{line}\n")

    audit = Audit.of([lock], [dockerfile], TODAY)

    assert audit.failed
    (one,) = audit.vulnerabilities
    assert one.finding.advisory is None
    assert one.finding.package in line
    assert one.finding.version == ("1.0" if line == "unheard-of==1.0" else "")
    assert "found: " in (text := shown(audit, capsys))
    assert text.endswith("not asked")


@pytest.mark.parametrize("text", [None, "# nothing\n"])
def test_a_file_that_is_no_lock_is_an_error(text: str | None, lock: Path, dockerfile: Path) -> None:
    lock.unlink() if text is None else lock.write_text(text)

    with pytest.raises(AuditError, match=r"requirements\.txt: "):
        Audit.of([lock], [dockerfile], TODAY)


def test_two_versions_in_one_lock_are_both_asked(lock: Path, dockerfile: Path) -> None:
    """A lock may pin by system, or by Python."""
    lock.write_text("jinja2==2.10 ; os_name == 'nt'\njinja2==3.1.6 ; os_name != 'nt'\n")

    audit = Audit.of([lock], [dockerfile], TODAY)

    assert {one.finding.version for one in audit.vulnerabilities} == {"2.10"}


def advisory(*ranges: tuple[Event, ...], versions: tuple[str, ...] = ()) -> Advisory:
    return Advisory(id="X-1", aliases=(), summary="", ranges=ranges, versions=versions)


@pytest.mark.parametrize(
    ("version", "affected"),
    [("0.9", False), ("1.0", True), ("1.5", True), ("2.0rc1", True), ("2.0", False),
     ("2.5", False), ("3.0", True), ("3.0.1", True), ("3.1", False)],
)  # fmt: skip
def test_a_range_is_followed_from_event_to_event(version: str, *, affected: bool) -> None:
    """Events come in any order: introduced 1.0, fixed 2.0, introduced again 3.0, fixed 3.1."""
    of = advisory(
        ({"fixed": "2.0"}, {"introduced": "3.0"}, {"introduced": "1.0"}, {"fixed": "3.1"})
    )

    assert of.affects(Version(version)) is affected


@pytest.mark.parametrize(
    ("of", "inside", "outside"),
    [
        (advisory(({"introduced": "0"}, {"last_affected": "1.4"})), "1.4", "1.4.1"),
        (advisory(({"introduced": "0"}, {"fixed": "1.4"})), "0.dev1", "1.4"),
        (advisory(({"introduced": "1.10"},)), "99", "1.9"),
        (advisory(versions=("1.2.0", "1.3")), "1.2", "1.2.1"),
        (advisory(({"introduced": "2"}, {"fixed": "3"}), versions=("1.0",)), "1.0", "1.1"),
        (advisory(({"introduced": "1"}, {"fixed": "2"}), ({"introduced": "4"},)), "4.1", "3"),
    ],
)
def test_ranges_and_versions_mean_what_osv_says(of: Advisory, inside: str, outside: str) -> None:
    assert of.affects(Version(inside))
    assert not of.affects(Version(outside))


def test_the_fix_of_each_later_branch_is_named_the_nearest_first() -> None:
    of = advisory(({"introduced": "0"}, {"fixed": "1.9"}), ({"introduced": "2"}, {"fixed": "2.10"}))

    assert of.fixed_after(Version("1.2")) == ("1.9", "2.10")
    assert of.fixed_after(Version("2.3")) == ("2.10",)


def test_a_mapping_of_what_runs_can_be_asked() -> None:
    """Names in any spelling; a local build is its public version; no version is no pass."""
    found = findings({"Jinja2": "2.10+local", "rich": "15.0.0", "click": "main"})

    assert {one.advisory for one in found if one.package == "Jinja2"} >= {"PYSEC-2021-66"}
    assert [one.advisory for one in found if one.package == "click"] == [None]
    assert not [one for one in found if one.package == "rich"]


@pytest.mark.parametrize(
    ("product", "version", "today", "said", "failed"),
    [
        ("python", "3.13.2", "2026-11-23", "supported until 2029-10-31", False),
        ("python", "3.1", "2026-11-23", "past end of life since 2012-04-09", True),
        ("python", "3.13", "2029-08-02", "ends soon until 2029-10-31", False),
        ("python", "3.13", "2029-10-31", "ends soon until 2029-10-31", False),
        ("python", "3.13", "2029-11-01", "past end of life since 2029-10-31", True),
        ("python", "3.99", "2026-11-23", "not asked", True),
        ("debian", "trixie", "2026-11-23", "supported until 2028-08-09", False),
        ("debian", "13.2", "2031-01-01", "past end of life since 2028-08-09", True),
        ("unheard-of", "1", "2026-11-23", "not asked", True),
        ("fastapi", "0.165.0", "2026-11-23", "no dates", False),
    ],
)
def test_an_end_of_life_fails_and_a_near_one_warns(
    product: str, version: str, today: str, said: str, *, failed: bool
) -> None:
    support = end_of_life(product, version, date.fromisoformat(today))

    assert str(support).startswith(said)
    assert support.failed is failed


def test_images_on_an_ended_debian_fail(lock: Path, dockerfile: Path) -> None:
    """Its extended support is named: it is another team's, and of fewer packages."""
    dockerfile.write_text("ARG BASE_IMAGE=registry.test/python:3.13-slim-bookworm@sha256:00\n")

    audit = Audit.of([lock], [dockerfile], TODAY)

    assert audit.failed
    said = {one.support.product: str(one.support) for one in audit.lifetimes}
    assert said["debian"] == (
        "past end of life since 2026-07-11, extended support until 2028-06-30"
    )


def test_a_base_image_that_names_no_debian_is_an_error(lock: Path, dockerfile: Path) -> None:
    dockerfile.write_text("ARG BASE_IMAGE=python:3.13\n")

    with pytest.raises(AuditError, match=r"Dockerfile: expected ARG BASE_IMAGE"):
        Audit.of([lock], [dockerfile], TODAY)


def test_an_old_extract_is_said(lock: Path, dockerfile: Path) -> None:
    newest, oldest = date(2026, 11, 20), date(2026, 11, 10)

    fresh = Audit.of([lock], [dockerfile], oldest + timedelta(days=30))
    old = Audit.of([lock], [dockerfile], newest + timedelta(days=31))

    assert not [said for said in fresh.warnings if f"of {oldest}" in said]
    assert len(old.warnings) == 2
    assert old.failed


PIP_AUDIT = """#!{python}
import json, sys
asked = open(sys.argv[sys.argv.index("-r") + 1]).read().split()
answers = {answers}
print(json.dumps({{"dependencies": [answers[one] for one in asked if one in answers]}}))
"""


def stand_in(path: Path, answers: dict[str, Any]) -> str:
    """A pip-audit that answers what it is told to."""
    path.write_text(PIP_AUDIT.format(python=sys.executable, answers=answers))
    path.chmod(0o755)
    return str(path)


def test_what_pip_audit_skips_is_asked_of_the_extract(
    lock: Path, dockerfile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with 0 for what it could not find: taken at its word, that would pass."""
    vulnerability = {"id": "PYSEC-2026-1", "fix_versions": ["8.5.2"], "aliases": ["CVE-1"]}
    answers = {
        "click==8.05.1": {"name": "click", "version": "8.5.1", "vulns": [vulnerability]},
        "jinja2==2.10": {"name": "jinja2", "skip_reason": "Dependency not found"},
    }
    monkeypatch.setenv("PIP_AUDIT", stand_in(tmp_path / "pip-audit", answers))
    lock.write_text("click==8.05.1\njinja2==2.10\nunheard-of==1.0\n")

    audit = Audit.of([lock], [dockerfile], TODAY)

    found = {(one.finding.package, one.finding.advisory) for one in audit.vulnerabilities}
    assert found >= {
        ("click", "PYSEC-2026-1"), ("jinja2", "PYSEC-2021-66"), ("unheard-of", None)
    }  # fmt: skip
    assert all(one.locks == [f"{lock} (in the images)"] for one in audit.vulnerabilities)
    assert "pip-audit, for 1 of 3 packages" in audit.asked[0]
    assert "for 2 of 3 packages (pip-audit: did not answer: Dependency not found)" in audit.asked[1]


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("import sys; sys.exit('cannot connect')", "could not be asked: cannot connect"),
        ("print('[]')", "could not be asked: its answer is not"),
        ("print('so')", "could not be asked: its answer is not"),
        ("print('{\"dependencies\": []}')", "did not answer: it left them out"),
    ],
)
def test_a_pip_audit_that_fails_is_no_answer(
    script: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "pip-audit"
    program.write_text(f"#!{sys.executable}\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PIP_AUDIT", str(program))

    answer = pip_audit.ask({"click": "8.5.1"})

    assert answer.findings == {}
    assert answer.silence.startswith(why)


def test_without_extracts_nothing_passes(
    extracts: Path, lock: Path, dockerfile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Silence is no answer, and who reads it must know what to do."""
    for path in extracts.iterdir():
        path.unlink()

    audit = Audit.of([lock], [dockerfile], TODAY)

    assert audit.failed
    text = shown(audit, capsys)
    assert "warning: there is no extract: make audit-data ADVISORIES=" in text
    assert text.endswith("found: 4 not asked")


def test_the_command_fails_for_all_that_is_locked_while_nothing_can_be_asked() -> None:
    """The locks and the Dockerfiles of this project are read as they are."""
    ended = subprocess.run(
        [sys.executable, "-m", "release", "audit", "--format=json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode in (0, 1)
    made = json.loads(ended.stdout)
    assert made["failed"] is (ended.returncode == 1)
    of = {one["support"]["product"] for one in made["lifetimes"]}
    assert {"python", "debian", "onnxruntime"} <= of


def clone(directory: Path, files: dict[str, str]) -> Path:
    """A git repository with one commit, of 2026-01-02."""
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    at = "2026-01-02T03:04:05+0000"
    environment = {"GIT_AUTHOR_DATE": at, "GIT_COMMITTER_DATE": at, "HOME": str(directory)}
    for command in (
        "init --quiet",
        "add .",
        "-c user.name=t -c user.email=t@example.org commit --quiet --message=t",
    ):
        subprocess.run(
            ["git", *command.split()],
            cwd=directory,
            env={**environment, "PATH": os.environ["PATH"]},
            check=True,
        )
    return directory


ADVISORY = """
id: PYSEC-2026-{number}
details: It    leaks. {details}
aliases: [CVE-2026-{number}]
affected:
- package: {{name: Click, ecosystem: PyPI}}
  {where}
"""
PRODUCT = """---
title: A
identifiers:
  - purl: pkg:pypi/{package}
releases:
  - releaseCycle: "1"
    codename: One
    eol: {eol}
---
> text: [of a page
"""


def test_the_extracts_are_made_from_clones(lock: Path, tmp_path: Path) -> None:
    lock.write_text("click==1.5\nrich==2\n")
    where = "ranges: [{type: ECOSYSTEM, events: [{introduced: '0'}, {fixed: '2'}]}]"
    listed = f"{where}\n  versions: ['1.0', '7.0', '0.1d']"
    only_git = "ranges: [{type: GIT, events: [{introduced: abc}]}]"
    records = {
        "vulns/click/1.yaml": ADVISORY.format(number=1, where=listed, details="x" * 300),
        "vulns/click/2.yaml": ADVISORY.format(number=2, where=only_git, details=""),
        "vulns/click/3.yaml": ADVISORY.format(number=3, where=where, details="")
        + "withdrawn: '2026-01-01'\n",
        "vulns/other/4.yaml": ADVISORY.format(number=4, where=where, details=""),
    }
    products = {
        "products/a.md": PRODUCT.format(package="rich", eol="2026-05-06"),
        "products/python.md": PRODUCT.format(package="no", eol="false"),
        "products/debian.md": PRODUCT.format(package="no", eol="true"),
    }

    paths = refresh.write(
        clone(tmp_path / "advisories", records),
        clone(tmp_path / "dates", products),
        [lock],
        tmp_path / "data",
    )

    assert [path.name for path in paths] == [ADVISORIES.name, END_OF_LIFE.name]
    made = Advisories.read(paths[0])
    assert made.date == date(2026, 1, 2)
    assert made.packages["rich"] == ()
    first, second = made.packages["click"]
    assert (first.id, first.aliases, first.versions) == (
        "PYSEC-2026-1", ("CVE-2026-1",), ("7.0",)
    )  # fmt: skip
    assert first.summary == "It leaks. …"
    assert {one.advisory for one in made.findings("click", "1.5")} == {first.id, second.id}
    # Which versions this one means cannot be said: all of them.
    assert [one.advisory for one in made.findings("click", "9")] == [second.id]
    ends = type(dates()).read(paths[1])
    assert {name: str(ends.support(name, "1.2", TODAY)) for name in ends.products} == {
        "click": "no dates",
        "rich": "past end of life since 2026-05-06",
        "python": "supported",
        "debian": "past end of life",
    }
    assert ends.support("debian", "one", TODAY).state == "ended"
    assert str(tmp_path) not in paths[0].read_text() + paths[1].read_text()


@pytest.mark.parametrize("files", [None, {"README.md": "another repository"}])
def test_what_is_no_clone_of_the_source_is_an_error(
    files: dict[str, str] | None, lock: Path, tmp_path: Path
) -> None:
    """An empty extract would pass everything."""
    other = tmp_path / "other"
    if files:
        clone(other, files)

    with pytest.raises(AuditError, match=r"other: expected a clone of https://github\.com/pypa/"):
        refresh.write(other, other, [lock], tmp_path / "data")

    assert not (tmp_path / "data").exists()


def test_an_extract_that_cannot_be_read_says_how_to_make_it(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"source": 1}')

    with pytest.raises(AuditError, match=r"broken\.json: .*`make audit-data` writes it"):
        Advisories.read(broken)
