"""What a PromQL query reads: the metrics in it, what it asks of their labels, what it groups by.

Used by test_monitoring.py. No parser: whether a query is well-formed is for Prometheus to say.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_TOKEN = re.compile(
    r'"(?:[^"\\]|\\.)*"|\d[\w.]*|[A-Za-z_][\w:]*|=~|!~|!=|[=<>!]=?|[^\s\w]', re.ASCII
)
_GROUPINGS = ("by", "without", "on", "ignoring", "group_left", "group_right")
_WORDS = ("and", "or", "unless", "bool", "offset", "atan2")


@dataclass(frozen=True)
class Selector:
    """A metric, and what its labels must be: each with an operator and a value."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...] = ()

    def without(self, labels: frozenset[str]) -> "Selector":
        """Return the selector without matchers for these labels."""
        kept = tuple(matcher for matcher in self.matchers if matcher[0] not in labels)
        return Selector(self.metric, kept)

    def selects(self, metric: str, labels: Mapping[str, str]) -> bool:
        """Return whether a series matches. A series without a label of a matcher does not match."""
        return metric == self.metric and all(
            label in labels and _holds(labels[label], operator, value)
            for label, operator, value in self.matchers
        )


@dataclass(frozen=True)
class Query:
    """What a query reads."""

    selectors: tuple[Selector, ...]
    groupings: frozenset[str]


def read(query: str) -> Query:
    """Return what a query reads."""
    tokens = [*_TOKEN.findall(query), "", ""]
    selectors: list[Selector] = []
    groupings: set[str] = set()
    at = 0
    while at < len(tokens) - 2:
        token, following = tokens[at], tokens[at + 1]
        at += 1
        if not re.match("[A-Za-z_]", token) or token in _WORDS:
            continue
        if token in _GROUPINGS:
            labels, at = _until(")", tokens, at + 1) if following == "(" else ([], at)
            groupings.update(label for label in labels if label != ",")
        elif following == "{":
            inside, at = _until("}", tokens, at + 1)
            selectors.append(Selector(token, _matchers(inside)))
        elif following != "(" and following not in _GROUPINGS:
            selectors.append(Selector(token))
    return Query(tuple(selectors), frozenset(groupings))


def _until(end: str, tokens: list[str], start: int) -> tuple[list[str], int]:
    """Return the tokens before the end, and where it goes on behind it."""
    stop = tokens.index(end, start)
    return tokens[start:stop], stop + 1


def _matchers(inside: list[str]) -> tuple[tuple[str, str, str], ...]:
    selected = [each for each in inside if each != ","]
    return tuple(
        (label, operator, value[1:-1])
        for label, operator, value in zip(
            selected[::3], selected[1::3], selected[2::3], strict=True
        )
    )


def _holds(actual: str, operator: str, value: str) -> bool:
    fits = re.fullmatch(value, actual) is not None if operator.endswith("~") else actual == value
    return fits is not operator.startswith("!")
