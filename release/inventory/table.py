"""The facts of replicas as a table, and the forms in which it is kept or shown."""

import html
import json
import re
from collections.abc import Callable, Iterable
from operator import methodcaller
from pathlib import Path
from string import Template
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import serving
from artifact.contract import dimensions
from release.inventory.replica import Answer, Replica

# More names of columns than that are in the contract.
_MANY = 12
# As much of a sha256 as a person compares; the whole of it is in the JSON.
_SHORT = 12


FACTS: dict[str, Callable[[Replica], object]] = {
    "where": lambda one: one.url,
    "track": lambda one: one.address.track,
    "mode": lambda one: one.answer["mode"],
    "model": lambda one: one.model,
    "purpose": lambda one: one.answer["model"]["purpose"],
    "owner": lambda one: one.answer["model"]["owner"],
    "state": lambda one: _state(one.answer),
    "image": lambda one: one.answer["image"],
    "revision": lambda one: one.answer["revision"],
    "input": lambda one: _format(one.answer["model"]["inputs"]),
    "output": lambda one: _format(one.answer["model"]["outputs"]),
    "os": lambda one: one.answer["os"],
    "kernel": lambda one: one.answer["kernel"],
    "cpu": lambda one: " ".join(one.answer["cpu_features"]),
    "python": lambda one: one.answer["python"],
    **{name: methodcaller("package", name) for name in ("onnxruntime", "numpy")},
    "providers": lambda one: " ".join(one.answer["providers"]),
    "opsets": lambda one: _pairs(one.answer["model"]["opsets"]),
    "model sha256": lambda one: one.answer["model"]["sha256"][:_SHORT],
    "contract sha256": lambda one: one.answer["model"]["contract_sha256"][:_SHORT],
    "source": lambda one: one.answer["model"]["source"],
    "loaded at": lambda one: one.answer["model"]["loaded_at"],
    "started at": lambda one: one.answer["started_at"],
    "trained from": lambda one: one.answer["model"]["origin"]["commit"],
    "train again": lambda one: one.answer["model"]["origin"]["command"],
    "other than in training": lambda one: _others(one.answer["model"]["other_versions"]),
}
_OF_ONE_PROCESS = ("where", "loaded at", "started at", "kernel", "cpu")


def table(replicas: list[Replica]) -> list[list[str]]:
    """Return rows of facts: a name, then a cell for each kind of replica.

    Replicas that differ in nothing but when and where they run share a column.
    """
    kinds: dict[tuple[str, ...], list[Replica]] = {}
    for one in replicas:
        same = [str(FACTS[name](one)) for name in FACTS if name not in _OF_ONE_PROCESS]
        kinds.setdefault((*same, str(one.answer["packages"])), []).append(one)
    return [[name, *(_cell(fact, kind) for kind in kinds.values())] for name, fact in FACTS.items()]


def _state(answer: Answer) -> str:
    if answer["degraded"]:
        return f"degraded: {answer['degraded']}"
    return "ready" if answer["ready"] else "not ready"


def _format(tensors: list[dict[str, Any]]) -> str:
    """Return tensors as one line each: name, dtype and shape, then what their columns are."""
    return "; ".join(
        f"{one['name']} {one['dtype']}{dimensions(one['shape'])}{_columns(one)}" for one in tensors
    )


def _columns(tensor: dict[str, Any]) -> str:
    names = tensor["labels"] or [
        f"{one['name']} ({one['unit']})" if one["unit"] else one["name"]
        for one in tensor["features"]
    ]
    return f": {', '.join(names)}" if names and len(names) <= _MANY else ""


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name or 'ai.onnx'} {value}" for name, value in values.items())


def _others(versions: dict[str, dict[str, str]]) -> str:
    return "; ".join(
        f"{name} {one['here']}, not {one['trained']}" for name, one in versions.items()
    )


def _cell(fact: Callable[[Replica], object], kind: list[Replica]) -> str:
    return _list(fact(one) or "" for one in kind)


def _list(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))


def show(replicas: list[Replica], found: list[str], noted: list[str]) -> None:
    """Print the table and what does not agree."""
    rows = table(replicas)
    shown = Table(show_header=False, show_lines=True)
    for number in range(len(rows[0])):
        shown.add_column(overflow="fold", no_wrap=number == 0)
    for row in rows:
        shown.add_row(*map(escape, row))
    console = Console(highlight=False)
    console.print(shown)
    console.print("\n".join(_verdict(found, noted)), soft_wrap=True, markup=False)


def as_json(replicas: list[Replica], found: list[str], noted: list[str]) -> str:
    """Return whole answers, by where they came from, and what does not agree."""
    answers = [{"url": one.url, "track": one.address.track, **one.answer} for one in replicas]
    return json.dumps({"replicas": answers, "disagreements": found, "notes": noted}, indent=2)


def as_markdown(replicas: list[Replica], found: list[str], noted: list[str]) -> str:
    """Return the table and what does not agree."""
    first, *rows = [[cell.replace("|", "\\|") for cell in row] for row in table(replicas)]
    lines = [first, ["---"] * len(first), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([text, "", *(f"- {line}" for line in _verdict(found, noted))])


def as_html(replicas: list[Replica], found: list[str], noted: list[str]) -> str:
    """Return a page of its own, light and dark, without outside assets; it looks as a server's."""
    (_, *wheres), *facts = table(replicas)
    shown = [_row("where", [(cell, _class_of(cell, found)) for cell in wheres])]
    shown += [_row(name, [(cell, "") for cell in cells]) for name, *cells in facts]
    verdict = [("wrong", line) for line in found] or [("right", "Everything agrees.")]
    lines = [*verdict, *(("", f"Note: {line}") for line in noted)]
    return _PAGE.substitute(
        style=(_LOOK / "page.css").read_text(encoding="utf-8"),
        state=verdict[0][0],
        summary=f"{len(found)} not in agreement" if found else "Everything agrees",
        rows="\n".join(shown),
        lines="\n".join(
            f'<li class="notice {kind}">{html.escape(line)}</li>' for kind, line in lines
        ),
    )


def _row(name: str, cells: list[tuple[str, str]]) -> str:
    shown = "".join(f'<td class="{kind}">{html.escape(cell)}</td>' for cell, kind in cells)
    return f'<tr><th scope="row">{html.escape(name)}</th>{shown}</tr>'


def _class_of(wheres: str, found: list[str]) -> str:
    """Return how a column is marked: as wrong where a disagreement names one of its addresses."""
    named = "|".join(rf"(?<![\w-]){re.escape(where)}(?![\w-])" for where in wheres.split(", "))
    return "wrong" if any(re.search(named, line) for line in found) else ""


def _verdict(found: list[str], noted: list[str]) -> list[str]:
    return [*(found or ["Everything agrees."]), *(f"Note: {line}" for line in noted)]


FORMATS: dict[str, Callable[[list[Replica], list[str], list[str]], str]] = {
    "json": as_json,
    "markdown": as_markdown,
    "html": as_html,
}

_LOOK = Path(serving.__file__).parent / "api" / "page"
_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>What runs where</title>
<style>
$style</style>
</head>
<body>
<header>
<h1>What runs where</h1>
<span class="state $state">$summary</span>
</header>
<ul class="notices">
$lines
</ul>
<section class="scroll" tabindex="0" aria-label="Facts of each kind of replica"><table>
$rows
</table></section>
</body>
</html>
""")
