"""Format the inventory as a table on the terminal, JSON, Markdown, or an HTML page."""

import html
import json
import re
from collections.abc import Callable
from operator import methodcaller
from pathlib import Path
from string import Template
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import serving
from artifact.contract import dimensions
from release.inventory.replica import Inventory, Replica

# Tensors with more columns than this are shown without the names of the columns; the contract
# lists all.
_MAX_COLUMN_NAMES = 12
# Enough characters of a sha256 to compare by eye; the JSON format has all 64.
_SHA256_CHARACTERS = 12


# The rows of the table.
FACTS: dict[str, Callable[[Replica], object]] = {
    "where": lambda replica: replica.url,
    "track": lambda replica: replica.address.track,
    "mode": lambda replica: replica.inventory["mode"],
    "model": lambda replica: replica.model,
    "purpose": lambda replica: replica.inventory["model"]["purpose"],
    "owner": lambda replica: replica.inventory["model"]["owner"],
    "state": lambda replica: _state(replica.inventory),
    "image": lambda replica: replica.inventory["image"],
    "revision": lambda replica: replica.inventory["revision"],
    "input": lambda replica: _tensors(replica.inventory["model"]["inputs"]),
    "output": lambda replica: _tensors(replica.inventory["model"]["outputs"]),
    "os": lambda replica: replica.inventory["os"],
    "kernel": lambda replica: replica.inventory["kernel"],
    "cpu": lambda replica: " ".join(replica.inventory["cpu_features"]),
    "python": lambda replica: replica.inventory["python"],
    **{name: methodcaller("package", name) for name in ("onnxruntime", "numpy")},
    "providers": lambda replica: " ".join(replica.inventory["providers"]),
    "opsets": lambda replica: _opsets(replica.inventory["model"]["opsets"]),
    "model sha256": lambda replica: replica.inventory["model"]["sha256"][:_SHA256_CHARACTERS],
    "contract sha256": lambda replica: replica.contract_sha256[:_SHA256_CHARACTERS],
    "source": lambda replica: replica.inventory["model"]["source"],
    "loaded at": lambda replica: replica.inventory["model"]["loaded_at"],
    "started at": lambda replica: replica.inventory["started_at"],
    "trained from": lambda replica: replica.inventory["model"]["origin"]["commit"],
    "train again": lambda replica: replica.inventory["model"]["origin"]["command"],
    "differs from training": lambda replica: _other_versions(
        replica.inventory["model"]["other_versions"]
    ),
}
# Facts that may differ between replicas in the same column of the table.
_FACTS_OF_A_PROCESS = ("where", "loaded at", "started at", "kernel", "cpu")


def table(replicas: list[Replica]) -> list[list[str]]:
    """Return the rows: the name of a fact, then a cell for each column.

    Replicas that differ only in where and when they run share a column.
    """
    columns: dict[tuple[str, ...], list[Replica]] = {}
    for replica in replicas:
        key = [str(FACTS[name](replica)) for name in FACTS if name not in _FACTS_OF_A_PROCESS]
        columns.setdefault((*key, str(replica.inventory["packages"])), []).append(replica)
    return [
        [name, *(_cell(fact, column) for column in columns.values())]
        for name, fact in FACTS.items()
    ]


def _state(inventory: Inventory) -> str:
    if inventory["degraded"]:
        return f"degraded: {inventory['degraded']}"
    return "ready" if inventory["ready"] else "not ready"


def _tensors(tensors: list[dict[str, Any]]) -> str:
    """Return the name, dtype, shape, and column names of each tensor."""
    return "; ".join(
        f"{tensor['name']} {tensor['dtype']}{dimensions(tensor['shape'])}{_columns(tensor)}"
        for tensor in tensors
    )


def _columns(tensor: dict[str, Any]) -> str:
    names = tensor["labels"] or [
        f"{feature['name']} ({feature['unit']})" if feature["unit"] else feature["name"]
        for feature in tensor["features"]
    ]
    return f": {', '.join(names)}" if names and len(names) <= _MAX_COLUMN_NAMES else ""


def _opsets(opsets: dict[str, Any]) -> str:
    # ONNX writes the default domain ai.onnx as an empty string.
    return ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in opsets.items())


def _other_versions(packages: dict[str, dict[str, str]]) -> str:
    return "; ".join(
        f"{name} {versions['here']}, not {versions['trained']}"
        for name, versions in packages.items()
    )


def _cell(fact: Callable[[Replica], object], replicas: list[Replica]) -> str:
    return ", ".join(dict.fromkeys(str(fact(replica) or "") for replica in replicas))


def show(replicas: list[Replica], disagreements: list[str], notes: list[str]) -> None:
    """Print the table, the disagreements, and the notes."""
    rows = table(replicas)
    shown = Table(show_header=False, show_lines=True)
    for number in range(len(rows[0])):
        shown.add_column(overflow="fold", no_wrap=number == 0)
    for row in rows:
        shown.add_row(*map(escape, row))
    console = Console(highlight=False)
    console.print(shown)
    console.print("\n".join(_verdict(disagreements, notes)), soft_wrap=True, markup=False)


def as_json(replicas: list[Replica], disagreements: list[str], notes: list[str]) -> str:
    """Return the full inventory of each replica with its address, disagreements, and notes."""
    inventories = [
        {"url": replica.url, "track": replica.address.track, **replica.inventory}
        for replica in replicas
    ]
    content = {"replicas": inventories, "disagreements": disagreements, "notes": notes}
    return json.dumps(content, indent=2)


def as_markdown(replicas: list[Replica], disagreements: list[str], notes: list[str]) -> str:
    """Return the table, the disagreements, and the notes as Markdown."""
    first, *rows = [[cell.replace("|", "\\|") for cell in row] for row in table(replicas)]
    lines = [first, ["---"] * len(first), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([text, "", *(f"- {line}" for line in _verdict(disagreements, notes))])


def as_html(replicas: list[Replica], disagreements: list[str], notes: list[str]) -> str:
    """Return a self-contained HTML page, light and dark, in the style of the server's page."""
    (_, *addresses), *facts = table(replicas)
    rows = [_row("where", [(cell, _cell_class(cell, disagreements)) for cell in addresses])]
    rows += [_row(name, [(cell, "") for cell in cells]) for name, *cells in facts]
    verdict = [("wrong", line) for line in disagreements] or [("right", "Everything agrees.")]
    lines = [*verdict, *(("", f"Note: {line}") for line in notes)]
    return _PAGE.substitute(
        style=(_SERVER_PAGE / "page.css").read_text(encoding="utf-8"),
        state=verdict[0][0],
        summary=f"Disagreements: {len(disagreements)}" if disagreements else "Everything agrees",
        rows="\n".join(rows),
        lines="\n".join(
            f'<li class="notice {kind}">{html.escape(line)}</li>' for kind, line in lines
        ),
    )


def _row(name: str, cells: list[tuple[str, str]]) -> str:
    columns = "".join(f'<td class="{kind}">{html.escape(cell)}</td>' for cell, kind in cells)
    return f'<tr><th scope="row">{html.escape(name)}</th>{columns}</tr>'


def _cell_class(addresses: str, disagreements: list[str]) -> str:
    """Return the CSS class of a column: `wrong` if a disagreement names one of its addresses."""
    pattern = "|".join(
        rf"(?<![\w-]){re.escape(address)}(?![\w-])" for address in addresses.split(", ")
    )
    return "wrong" if any(re.search(pattern, line) for line in disagreements) else ""


def _verdict(disagreements: list[str], notes: list[str]) -> list[str]:
    return [*(disagreements or ["Everything agrees."]), *(f"Note: {line}" for line in notes)]


FORMATS: dict[str, Callable[[list[Replica], list[str], list[str]], str]] = {
    "json": as_json,
    "markdown": as_markdown,
    "html": as_html,
}

_SERVER_PAGE = Path(serving.__file__).parent / "api" / "page"
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
<section class="scroll" tabindex="0" aria-label="Facts of each group of equal replicas"><table>
$rows
</table></section>
</body>
</html>
""")
