"""The README's tables against the code: every setting, target and folder is documented."""

import re
import subprocess
from pathlib import Path

from pydantic.fields import FieldInfo

from model_in_image.source import ModelInImageSettings
from model_load.settings import ModelLoadSettings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def default(name: str, field: FieldInfo) -> str:
    """A setting's default as the README writes it."""
    if field.is_required():
        (mode,) = [
            settings.mode
            for settings in (ModelInImageSettings, ModelLoadSettings)
            if name in settings.model_fields and settings.model_fields[name].is_required()
        ]
        return f"required by `{mode}`"
    return "none" if field.default is None else f"`{field.default}`"


def test_every_setting_is_documented_as_it_is() -> None:
    fields = ModelLoadSettings.model_fields | ModelInImageSettings.model_fields

    documented = {row[0].strip("`"): row[1:] for row in rows("Settings")}

    assert documented == {
        name.upper(): [default(name, field), str(field.description)]
        for name, field in fields.items()
    }


def test_every_command_of_the_readme_is_a_target() -> None:
    helped = subprocess.run(
        ["make", "help"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout

    targets = set(re.findall(r"^  make ([a-z0-9-]+) ", helped, re.MULTILINE))
    assert set(re.findall(r"make ([a-z0-9-]+)[ `]", README)) <= targets


def test_every_folder_of_the_readme_is_there() -> None:
    named = {name for row in rows("Change it") for name in re.findall(r"`([a-z0-9_]+)/`", row[0])}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}

    assert named == packages | {"k8s", "tests"}


def test_the_first_screen_shows_a_command_and_its_output() -> None:
    """A newcomer meets something that runs before anything else."""
    screen = "\n".join(README.splitlines()[:25])

    assert "$ make run" in screen
    assert '{"prediction":["setosa","virginica"]}' in screen
