"""Compare README.md and docs/ with the code: settings, targets, paths, links, labels, ports."""

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic.fields import FieldInfo

from model_in_image.source import ModelInImageSettings
from model_load.settings import ModelLoadSettings
from tests import docs, manifests
from tests.fakes import unavailable

ARCHITECTURE = docs.ROOT / "docs" / "architecture.md"
CUSTOMIZE = docs.ROOT / "docs" / "customize.md"
MAX_README_WORDS = 1300
README_LINES = range(150, 201)
# Paths that a reader creates, or that commands write.
CREATED = (
    ".venv/",
    "benchmarks/results.",
    "compatibility.",
    "docs/compatibility",
    "k8s/model_in_image/server.yaml",
    "models",
    "sbom/",
)


def default(name: str, field: FieldInfo) -> str:
    """Return the default of a setting as docs/settings.md writes it."""
    if field.is_required():
        (mode,) = [
            settings.mode
            for settings in (ModelInImageSettings, ModelLoadSettings)
            if name in settings.model_fields and settings.model_fields[name].is_required()
        ]
        return f"required by `{mode}`"
    return "none" if field.default is None else f"`{field.default}`"


def make_targets() -> set[str]:
    """Return the targets of the Makefile, also those without a help line."""
    makefile = (docs.ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z0-9-]*):(?!=)", makefile, re.MULTILINE))


def named_targets(text: str) -> set[str]:
    """Return the targets of every `make …` in a text, in code or in a block."""
    code = [*docs.code(text), *(block.text for block in docs.blocks(text))]
    command = re.compile(r"(?:^|\$ |&& )make ([a-z][a-z0-9-]*[a-z0-9])", re.MULTILINE)
    return {target for each in code for target in command.findall(each)}


def named_paths(text: str) -> set[str]:
    """Return the paths of this repository that a text names in code or in a plain diagram."""
    diagrams = [block.text for block in docs.blocks(text) if block.language in ("", "yaml")]
    words = [word for each in docs.code(text) for word in each.split()]
    words += [word.strip(",:()") for each in diagrams for word in each.split()]
    tops = {path.name for path in docs.ROOT.iterdir() if path.is_dir()}
    files = {path.name for path in docs.ROOT.iterdir() if path.is_file()}
    return {
        word
        for word in words
        if re.fullmatch(r"[\w./-]+", word)
        and ((word.partition("/")[0] in tops and "/" in word) or word in files)
        and not word.startswith(CREATED)
    }


def test_every_setting_is_documented() -> None:
    fields = ModelLoadSettings.model_fields | ModelInImageSettings.model_fields

    documented = {
        row[0].strip("`"): row[1:]
        for row in docs.table(docs.ROOT / "docs" / "settings.md", "variable")
    }

    assert documented == {
        name.upper(): [default(name, field), str(field.description)]
        for name, field in fields.items()
    }


@pytest.mark.parametrize("page", docs.TEXTS, ids=lambda page: page.name)
def test_every_make_target_exists(page: Path) -> None:
    targets = make_targets()

    # `help-deploy` explains the variables of `deploy`.
    named = {target.removeprefix("help-") for target in named_targets(docs.read(page)) - targets}

    assert named - targets == set()


@pytest.mark.parametrize("page", docs.TEXTS, ids=lambda page: page.name)
def test_every_path_exists(page: Path) -> None:
    assert [path for path in named_paths(docs.read(page)) if not (docs.ROOT / path).exists()] == []


@pytest.mark.parametrize("page", docs.TEXTS, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_page_and_a_heading(page: Path) -> None:
    broken = []
    for link in docs.links(docs.read(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in docs.anchors(docs.read(target))):
            broken.append(link)
    assert broken == []


def test_every_page_is_linked_from_the_readme_and_the_index() -> None:
    """A page without a link is never found."""
    readme = {link.partition("#")[0] for link in docs.links(docs.read(docs.README))}
    index_page = docs.ROOT / "docs" / "README.md"
    index = {link.partition("#")[0] for link in docs.links(docs.read(index_page))}
    pages = {page.name for page in docs.DOCS if page != index_page}

    assert {f"docs/{name}" for name in pages} - readme == set()
    assert pages - index == set()


def test_the_readme_is_short() -> None:
    """Comparable projects have 450 to 1,900 words; nobody reads more on the first day."""
    text = docs.read(docs.README)

    assert len(text.split()) <= MAX_README_WORDS
    assert len(text.splitlines()) in README_LINES


def test_the_first_screen_shows_a_command_and_its_output() -> None:
    """A newcomer sees something that runs before anything else."""
    screen = "\n".join(docs.read(docs.README).splitlines()[:25])

    assert "$ make run" in screen
    assert '{"prediction":["setosa","virginica"]}' in screen


def test_every_folder_is_in_the_architecture() -> None:
    rows = docs.table(ARCHITECTURE, "folder")
    documented = {name for row in rows for name in re.findall(r"`([a-z0-9_]+)/`", row[0])}
    packages = {path.parent.name for path in docs.ROOT.glob("*/__init__.py")}

    assert documented == packages | {"k8s", "tests"}


def test_the_layers_of_serving_are_those_that_are_enforced() -> None:
    project = tomllib.loads((docs.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = {each["id"]: each for each in project["tool"]["importlinter"]["contracts"]}
    layers = reversed(contracts["serving-layers"]["layers"])

    assert f"\n{', '.join(layers)}\n" in docs.read(ARCHITECTURE)


@pytest.mark.parametrize(
    "symbol",
    sorted(set(re.findall(r"`?([A-Z]\w+\.[a-z_]\w+)\b`?(?!\.md)", docs.read(ARCHITECTURE)))),
)
def test_every_method_in_the_architecture_exists(symbol: str) -> None:
    """The path of a request names classes and methods; a renamed one must change there, too."""
    name, _, method = symbol.partition(".")
    grep = ["git", "grep", "--untracked", "-l", "-E", rf"^class {name}\b", "--", "*.py"]
    files = subprocess.run(grep, cwd=docs.ROOT, capture_output=True, text=True, check=False).stdout

    assert any(
        f"def {method}(" in (docs.ROOT / file).read_text(encoding="utf-8") for file in files.split()
    )


def rendered() -> Iterator[manifests.Object]:
    """Yield every object of every deployment, on both tracks."""
    for overlay in manifests.SERVERS:
        for components in ((), (manifests.CANARY,)):
            yield from manifests.render(overlay, components)


def metadata(objects: Iterator[manifests.Object]) -> Iterator[Any]:
    """Yield the metadata of objects and of their pods."""
    for item in objects:
        yield item["metadata"]
        if item["kind"] == "Deployment":
            yield item["spec"]["template"]["metadata"]


def first_column(head: str) -> set[str]:
    """Return the code in the first column of a table of the architecture."""
    rows = docs.table(ARCHITECTURE, head)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row[0])}


def test_every_label_is_in_the_architecture() -> None:
    labels = {name for each in metadata(rendered()) for name in each.get("labels", {})}

    assert first_column("label") == labels


def test_every_annotation_is_in_the_architecture() -> None:
    annotations = {name for each in metadata(rendered()) for name in each.get("annotations", {})}

    assert first_column("annotation on pods") == annotations


def test_every_port_is_in_the_architecture() -> None:
    objects = list(rendered())
    pods = [manifests.pod_of([each]) for each in objects if each["kind"] == "Deployment"]
    ports = {
        (str(port["containerPort"]), f"`{port['name']}`", "pods")
        for pod in pods
        for container in manifests.containers(pod)
        for port in container.get("ports", ())
    } | {
        (str(port["port"]), f"`{port['name']}`", "Service")
        for each in objects
        if each["kind"] == "Service"
        for port in each["spec"]["ports"]
    }

    assert {tuple(row[:3]) for row in docs.table(ARCHITECTURE, "port")} == ports


def test_the_example_patch_appears_in_the_rendered_pod(tmp_path: Path) -> None:
    """docs/customize.md: a readiness period, a memory limit, and a label for one mode."""
    if shutil.which("kubectl") is None:
        unavailable("needs kubectl")
    patch, additions = (
        block for block in docs.blocks(docs.read(CUSTOMIZE)) if block.language == "yaml"
    )
    assert patch.file_name is not None
    shutil.copytree(docs.ROOT / "k8s", tmp_path / "k8s")
    (tmp_path / patch.file_name).write_text(patch.text, encoding="utf-8")
    file = (tmp_path / patch.file_name).parent / "kustomization.yaml"
    kustomization = yaml.safe_load(file.read_text(encoding="utf-8"))
    for key, entries in yaml.safe_load(additions.text).items():
        kustomization[key] = [*kustomization.get(key, []), *entries]
    file.write_text(yaml.safe_dump(kustomization), encoding="utf-8")

    output = subprocess.run(
        ["kubectl", "kustomize", file.parent], capture_output=True, text=True, check=True
    ).stdout

    deployment = manifests.only(list(yaml.safe_load_all(output)), "Deployment")
    template = deployment["spec"]["template"]
    server = manifests.server_of(template["spec"])
    assert server["readinessProbe"]["periodSeconds"] == 2
    assert server["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert server["resources"]["limits"] == {"memory": "512Mi"}
    assert template["metadata"]["labels"]["team"] == "vision"
    assert "team" not in deployment["spec"]["selector"]["matchLabels"]
