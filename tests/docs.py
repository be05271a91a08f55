"""Parse README.md and docs/: blocks, tables, headings, and links.

For tests that run the commands of the documentation and compare it with the code.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
# The pages in the order in which their commands run.
PAGES = [README, *DOCS]
# Also checked for links and paths; nothing in them is run.
TEXTS = [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"))]

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_FILE_NAME = re.compile(r"# (\S+\.(?:py|yaml))\n")


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    # `console`, `python`, `sh`, `yaml`, or "" for a block without a language.
    language: str
    text: str

    @property
    def file_name(self) -> str | None:
        """The file that the reader should save the block as: its first line, if a comment."""
        match = _FILE_NAME.match(self.text)
        return match[1] if match else None


@dataclass
class Command:
    """A command of a console block and the lines of its output that are shown."""

    text: str
    output: list[str]


def read(page: Path) -> str:
    """Return the text of a page."""
    return page.read_text(encoding="utf-8")


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    for language, content in _BLOCK.findall(text):
        yield Block(language, content)


def without_blocks(text: str) -> str:
    """Return a page without its fenced blocks."""
    return _BLOCK.sub("", text)


def commands(block: Block) -> list[Command]:
    """Return the commands of a console block."""
    parsed: list[Command] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            parsed.append(Command(line[2:], []))
        else:
            parsed[-1].output.append(line)
    return parsed


def links(text: str) -> list[str]:
    """Return the targets of all links, such as `contract.md#batching`."""
    return _LINK.findall(without_blocks(text))


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub writes them."""
    return {_anchor(heading) for heading in _HEADING.findall(without_blocks(text))}


def tables(text: str) -> Iterator[list[list[str]]]:
    """Yield the cells of each table; the first row is the head."""
    for lines in re.findall(r"(?:^\|.*\|$\n?)+", without_blocks(text), re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines.split("\n")]
        head, _, *body = [row for row in rows if row != [""]]
        yield [head, *body]


def table(page: Path, head: str) -> list[list[str]]:
    """Return the rows of the table whose first column has this head. Raises LookupError."""
    for rows in tables(read(page)):
        if rows[0][0] == head:
            return rows[1:]
    raise LookupError(f"{page.name}: no table with the column {head!r}")


def code(text: str) -> list[str]:
    """Return the inline code of a page, such as `make deploy`."""
    return re.findall(r"`([^`\n]+)`", without_blocks(text))


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
