"""The table of what serves what: a page, and the same on a terminal.

Made of the record that record.py makes; reasons are numbered, and listed once each.
"""

from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from release.compatibility.record import RECORD, Artifact, Cell, Compatibility, Server

PAGE = "compatibility.md"
_STYLES = {True: "green", False: "red", None: "yellow"}
_WORDS = {True: "supported", False: "refused", None: "not tried"}


class Matrix:
    """Artifacts down, servers across."""

    def __init__(self, record: Compatibility) -> None:
        self._record = record
        self._cells = {(cell.artifact, cell.server): cell for cell in record.cells}
        refused = [(cell.artifact, cell.reason) for cell in record.cells if cell.reason]
        self._reasons = {reason: n for n, reason in enumerate(dict.fromkeys(refused), 1)}

    def write(self, directory: Path) -> list[Path]:
        """Write the record and the page into a directory, and return their paths."""
        directory.mkdir(parents=True, exist_ok=True)
        texts = {RECORD: self._record.model_dump_json(indent=2) + "\n", PAGE: self.page()}
        for name, text in texts.items():
            # Rename last: a reader sees the old table or the new one, never half.
            written = directory / f".{name}.new"
            written.write_text(text, encoding="utf-8")
            written.replace(directory / name)
        return [directory / name for name in texts]

    def show(self) -> None:
        """Print the table, and why."""
        console = Console(highlight=False, markup=False)
        headings = ["artifact", "opset", "IR", *map(_heading, self._record.servers)]
        table = Table(*(Column(heading, overflow="fold") for heading in headings))
        for artifact in self._record.artifacts:
            cells = [
                Text(self._word(cell), _STYLES[cell.supported]) for cell in self._row(artifact)
            ]
            table.add_row(artifact.path, _opsets(artifact), _ir_version(artifact), *cells)
        console.print(table)
        for (where, why), number in self._reasons.items():
            console.print(f"{number}. {where}: {why}", soft_wrap=True)
        for note in self._record.notes:
            console.print(note, soft_wrap=True)

    def page(self) -> str:
        """Return the table, the reasons and the servers as Markdown."""
        record = self._record
        made = (
            f"Made by {_code(record.made_by)} on {record.made_at:%Y-%m-%d at %H:%M} UTC: each "
            "artifact was loaded, and its golden rows run, in each server. Do not edit."
        )
        servers = _table(
            ["server", "id", "revision", "onnxruntime", "numpy", "Python", "where"],
            [_about(server) for server in record.servers],
        )
        artifacts = _table(
            ["artifact", "sha256 of contract.json"],
            [[artifact.path, artifact.contract_sha256] for artifact in record.artifacts],
        )
        lines = ["# Which server serves which model", "", made, "", *self._verdicts(), *self._why()]
        return "\n".join([*lines, "## Servers", "", *servers, "## Artifacts", "", *artifacts])

    def _verdicts(self) -> list[str]:
        headings = [_heading(server).replace("\n", "<br>") for server in self._record.servers]
        rows = [
            [one.path, _opsets(one), _ir_version(one), *map(self._word, self._row(one))]
            for one in self._record.artifacts
        ]
        return _table(["artifact", "opset", "IR", *headings], rows)

    def _why(self) -> list[str]:
        reasons = [f"{n}. {where}: {_code(why)}" for (where, why), n in self._reasons.items()]
        notes = [line for note in self._record.notes for line in (note, "")]
        return [*reasons, *([""] if reasons else []), *notes]

    def _row(self, artifact: Artifact) -> list[Cell]:
        return [self._cells[artifact.path, server.id] for server in self._record.servers]

    def _word(self, cell: Cell) -> str:
        number = self._reasons.get((cell.artifact, cell.reason or ""))
        return _WORDS[cell.supported] + (f" ({number})" if number else "")


def _heading(server: Server) -> str:
    runs = f"onnxruntime {server.software.onnxruntime}" if server.software else "does not run"
    return f"{server.name}\n{runs}"


def _about(server: Server) -> list[str]:
    software = server.software
    versions = [software.onnxruntime, software.numpy, software.python] if software else ["?"] * 3
    revisions = dict.fromkeys(image.revision or "unknown" for image in server.images)
    names = [name for image in server.images for name in (*image.names, *image.digests)]
    held = ", ".join(names) if server.kind == "image" else "an environment of this folder's server"
    return [server.name, server.id[:19], ", ".join(revisions), *versions, held]


def _opsets(artifact: Artifact) -> str:
    if artifact.opsets is None:
        return "?"
    return ", ".join(f"{domain} {version}".strip() for domain, version in artifact.opsets.items())


def _ir_version(artifact: Artifact) -> str:
    return str(artifact.ir_version or "?")


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    """Return a table of Markdown, an empty line behind it."""
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines] + [""]


def _code(text: str) -> str:
    return "`" + text.replace("`", "'") + "`"
