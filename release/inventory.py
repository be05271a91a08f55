"""What runs where: every server's own answer in one table, and what in it does not agree.

`make inventory`. Never what a manifest says: each server is asked for its /inventory.
"""

import datetime as dt
import hashlib
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from string import Template
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from release.audit.advisories import advisories, findings
from release.audit.end_of_life import dates, end_of_life
from release.docker_images import find
from release.prune import newest
from release.store import contract_in
from serving.contract import dimensions

_ASK_SECONDS = 10
# Answers come from any worker.
_ROUNDS = 20
# What a model's outputs depend on.
_RUNTIME = ("onnxruntime", "numpy")
_NO_PACKAGES = ("python", "debian")
# More names of columns than that are in the contract.
_MANY = 12
# As much of a sha256 as a person compares; the whole of it is in the JSON.
_SHORT = 12

Answer = dict[str, Any]


@dataclass(frozen=True)
class Replica:
    """One process that serves: where it was asked, and what it answered."""

    url: str
    answer: Answer

    @property
    def model(self) -> str:
        """Its model, as `iris/1`."""
        return f"{self.answer['model']['name']}/{self.answer['model']['version']}"

    @property
    def release(self) -> tuple[Any, ...]:
        """What replicas have in common that must not differ in anything else."""
        return self.answer["mode"], self.answer["image"], self.model


def ask(urls: Iterable[str]) -> tuple[list[Replica], list[str]]:
    """Return every worker of every server, and what could not be asked."""
    replicas, silent = [], []
    for url in urls:
        try:
            replicas += _workers(url.rstrip("/"))
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError) as error:
            silent.append(f"{url}: no /inventory there: {error or type(error).__name__}")
    return replicas, silent


def _workers(url: str) -> list[Replica]:
    """Ask one address until all of its workers have answered, or long enough."""
    found: dict[int, Replica] = {}
    wanted = 1
    with (
        httpx.Client(timeout=_ASK_SECONDS, headers={"Connection": "close"}) as client,
        ThreadPoolExecutor() as threads,
    ):
        for _ in range(_ROUNDS):
            # At the same time: one that is idle would answer them all, one by one.
            for answer in threads.map(partial(_answer, client), [url] * (2 * wanted - 1)):
                found[answer["pid"]] = Replica(url, answer)
                wanted = answer["settings"]["workers"]
            if len(found) >= wanted:
                break
    return [found[pid] for pid in sorted(found)]


def _answer(client: httpx.Client, url: str) -> Answer:
    answer: Answer = client.get(f"{url}/inventory").raise_for_status().json()
    return answer


def _package(name: str, one: Replica) -> str | None:
    version: str | None = one.answer["packages"].get(name)
    return version


FACTS: dict[str, Callable[[Replica], object]] = {
    "where": lambda one: one.url,
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
    **{name: partial(_package, name) for name in _RUNTIME},
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


def disagreements(replicas: list[Replica], store: str, keep: int = 3) -> Iterator[str]:
    """Yield everything that does not agree, one line each, with where and what.

    keep: of `make prune`: how many images of each mode and model stay that nothing runs.
    """
    yield from _replicas_that_differ(replicas)
    yield from _runtimes_that_differ(replicas)
    for model, some in _by(replicas, lambda one: one.model).items():
        yield from _not_as_published(model, some, store)
    yield from _known(replicas)
    yield from _only_run(replicas, keep)
    for one in replicas:
        where = f"{one.url}: {one.model}"
        if one.answer["degraded"]:
            yield f"{where}: degraded: {one.answer['degraded']}"
        if not one.answer["model"]["purpose"].strip():
            yield f"{where}: its contract's purpose is empty: nobody knows what it is for"


def _replicas_that_differ(replicas: list[Replica]) -> Iterator[str]:
    for release, some in _by(replicas, lambda one: one.release).items():
        for name in ("model sha256", "contract sha256", "python", "os"):
            yield from _differ(_title(release), name, some, FACTS[name])
        for name in sorted({name for one in some for name in one.answer["packages"]}):
            yield from _differ(_title(release), name, some, partial(_package, name))


def _runtimes_that_differ(replicas: list[Replica]) -> Iterator[str]:
    """Yield what models run on, where that is not the same everywhere, or not training's."""
    for name in _RUNTIME:
        yield from _differ("all that runs", name, replicas, FACTS[name])
    for (url, model), some in _by(replicas, lambda one: (one.url, one.model)).items():
        for name, versions in some[0].answer["model"]["other_versions"].items():
            if name in _RUNTIME:
                yield (
                    f"{url}: {model}: {name} {versions['here']}, "
                    f"its training had {versions['trained']}"
                )


def _not_as_published(model: str, some: list[Replica], store: str) -> Iterator[str]:
    """Yield where a model runs that the store no longer has, or has otherwise."""
    held = contract_in(store, *model.split("/"))
    sha256 = hashlib.sha256(held).hexdigest() if held is not None else None
    for one in some:
        if sha256 is None:
            yield f"{one.url}: {model}: {store} does not have it: it cannot be released again"
        elif sha256 != one.answer["model"]["contract_sha256"]:
            yield (
                f"{one.url}: {model}: {store} has another contract of that version: "
                f"sha256 {sha256}, it serves {one.answer['model']['contract_sha256']}"
            )


def not_asked() -> list[str]:
    """Return what nobody could be asked about: without extracts, what is known of versions."""
    extracts = {"vulnerabilities": advisories(), "ends of life": dates()}
    return [
        f"Not asked: {what}: {extract.warning(dt.datetime.now(dt.UTC).date())}"
        for what, extract in extracts.items()
        if extract.date is None
    ]


def _known(replicas: list[Replica]) -> Iterator[str]:
    """Yield what is known to be wrong with what runs: vulnerabilities and ends of life."""
    today = dt.datetime.now(dt.UTC).date()
    versions = {
        (name, version): [other for other in replicas if _software(other).get(name) == version]
        for one in replicas
        for name, version in _software(one).items()
    }
    for (name, version), having in versions.items():
        where = _list(one.url for one in having)
        support = end_of_life(name, version, today)
        if support.state == "ended":
            yield f"{where}: {name} {version} is {support}"
        for found in findings({name: version}) if name not in _NO_PACKAGES else ():
            if found.advisory is not None:
                fixed = ", ".join(found.fixed) or "no version"
                yield f"{where}: {name} {version}: {found.advisory}, fixed in {fixed}"


def _only_run(replicas: list[Replica], keep: int) -> Iterator[str]:
    """Yield images that only a container keeps: `make prune` would have removed them."""
    if not any(one.answer["image"] for one in replicas):
        return
    images = find("").images
    recent = newest(images, keep)
    old = {name for image in images if image.id not in recent for name in image.names}
    for one in replicas:
        if one.answer["image"] in old:
            yield (
                f"{one.url}: {one.answer['image']}: older than the newest {keep}: once it is "
                "stopped and removed, `make prune` removes the image, too"
            )


def _software(one: Replica) -> dict[str, str]:
    """Return the packages of a replica, its Python, and its Debian if it is one."""
    debian = re.match(r"Debian GNU/Linux (\d+)", one.answer["os"])
    return {
        **one.answer["packages"],
        "python": one.answer["python"],
        **({"debian": debian[1]} if debian else {}),
    }


def _differ(
    among: str, name: str, some: list[Replica], fact: Callable[[Replica], object]
) -> Iterator[str]:
    """Yield one line when a fact is not the same for all, with who has which."""
    by_fact = _by(some, fact)
    if len(by_fact) > 1:
        listed = "; ".join(
            f"{value or 'none'} at {_list(one.url for one in having)}"
            for value, having in by_fact.items()
        )
        yield f"{among}: {name} differs: {listed}"


def _by(some: Iterable[Replica], key: Callable[[Replica], Any]) -> dict[Any, list[Replica]]:
    grouped: dict[Any, list[Replica]] = {}
    for one in some:
        grouped.setdefault(key(one), []).append(one)
    return grouped


def _title(release: tuple[Any, ...]) -> str:
    return "replicas of " + " ".join(str(part) for part in release if part)


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


def show(replicas: list[Replica], found: list[str]) -> None:
    """Print the table and what does not agree."""
    rows = table(replicas)
    shown = Table(show_header=False, show_lines=True)
    for number in range(len(rows[0])):
        shown.add_column(overflow="fold", no_wrap=number == 0)
    for row in rows:
        shown.add_row(*map(escape, row))
    console = Console(highlight=False)
    console.print(shown)
    console.print("\n".join(_verdict(found)), soft_wrap=True, markup=False)


def as_json(replicas: list[Replica], found: list[str]) -> str:
    """Return whole answers, by where they came from, and what does not agree."""
    answers = [{"url": one.url, **one.answer} for one in replicas]
    return json.dumps({"replicas": answers, "disagreements": found}, indent=2)


def as_markdown(replicas: list[Replica], found: list[str]) -> str:
    """Return the table and what does not agree."""
    first, *rows = [[cell.replace("|", "\\|") for cell in row] for row in table(replicas)]
    lines = [first, ["---"] * len(first), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([text, "", *(f"- {line}" for line in _verdict(found))])


def as_html(replicas: list[Replica], found: list[str]) -> str:
    """Return a page of its own, light and dark, without outside assets."""
    rows = "\n".join(
        f"<tr><th scope=row>{html.escape(name)}</th>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in table(replicas)
    )
    listed = "\n".join(f"<li>{html.escape(line)}</li>" for line in _verdict(found))
    return _PAGE.substitute(rows=rows, found=listed)


def _verdict(found: list[str]) -> list[str]:
    return [*(found or ["Everything agrees."]), *dict.fromkeys(not_asked())]


FORMATS: dict[str, Callable[[list[Replica], list[str]], str]] = {
    "json": as_json,
    "markdown": as_markdown,
    "html": as_html,
}

_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>What runs where</title>
<style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { margin: 2rem auto; max-width: 80rem; padding: 0 1rem }
div { overflow-x: auto }
table { border-collapse: collapse }
th, td { border: 1px solid color-mix(in srgb, currentColor 25%, transparent); padding: .3rem .6rem;
  text-align: left; vertical-align: top; overflow-wrap: anywhere }
th { white-space: nowrap }
</style>
<h1>What runs where</h1>
<div><table>
$rows
</table></div>
<h2>What does not agree</h2>
<ul>
$found
</ul>
</html>
""")
