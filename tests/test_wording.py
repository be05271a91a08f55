"""Plain words in everything that people read: CONTRIBUTING.md, "Plain words", has the reasons.

The lists are short on purpose: they hold words that the project replaced once and that are easy
to write again. `python -m tests.test_wording` prints every finding.
"""

import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# The term to use instead stands behind each pattern.
PHRASES = {
    r"\b(asked|told|said|came|come[s]? back)\b": "the noun: request, message, result, actual value",
    r"\b(heed(s|ed)?|befell|whoever|whatever came|mend(s|ed)?)\b": "handle, affect, clients, fix",
    r"\bbut for\b": "except",
    r"\bwhat (is no|came|is there|it no longer)\b": "the noun: NaN, the value, the files",
    r"\bwho (has|have) (one|none|any)\b": "clients that, users that",
    r"\b(is|are) not there\b|\bnot there yet\b": "does not exist, is missing",
    r"\b(serve|serves|answer|answers) on\b": "keeps serving",
    r"\bgoes? on where\b": "resumes",
    r"\b(hot|cold) paths?\b": "fast path, FastAPI path",
    r"\b_(MOST|LONGEST|LARGEST|FEWEST)_|\b(MOST|LONGEST|LARGEST|FEWEST)_": "MAX_, MIN_",
}
# Names of variables, parameters, functions, and attributes.
NAMES = {"asked", "said", "told", "came", "given", "one", "Asked", "Told"}
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".js", ".css", ".html", ".toml", ".sh", ".json"}
UNSUFFIXED = {"Makefile", "Dockerfile.model_in_image", "Dockerfile.model_load"}
# Written by programs, or about the words themselves.
EXCEPT = {
    "artifact/contract.schema.json",
    "tests/package-lock.json",
    "tests/package.json",
    "tests/test_wording.py",
    "CONTRIBUTING.md",
}


def files() -> list[Path]:
    """The text files of the project."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    return [
        Path(name)
        for name in listed
        if (Path(name).suffix in SUFFIXES or name in UNSUFFIXED)
        and name not in EXCEPT
        and not name.startswith("tests/contracts/")
        and (ROOT / name).is_file()
    ]


def phrases_in(text: str) -> Iterator[str]:
    """Yield the line and the replacement of each phrase in a text."""
    for number, line in enumerate(text.splitlines(), 1):
        # Names are read as words, too: test_it_was_said.
        words = f"{line} {line.replace('_', ' ')}"
        for pattern, instead in PHRASES.items():
            if match := re.search(pattern, words, re.IGNORECASE if pattern.islower() else 0):
                yield f'{number}: "{match[0]}": {instead}'


def names_in(code: str) -> Iterator[str]:
    """Yield the line of each name in Python code that is no noun."""
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.NAME and token.string in NAMES:
            yield f'{token.start[0]}: "{token.string}": the noun'


def findings(path: Path) -> list[str]:
    """Return the findings of a file, each with its line and the replacement."""
    text = (ROOT / path).read_text(encoding="utf-8")
    results = [*phrases_in(text), *(names_in(text) if path.suffix == ".py" else ())]
    return [f"{path}:{each}" for each in results]


def test_every_file_uses_plain_words() -> None:
    """Also in the names of variables: an identifier is read more often than a sentence."""
    assert [each for path in files() for each in findings(path)] == []


@pytest.mark.parametrize(
    "text",
    [
        "# What came is no number.",
        "The release before serves on.",
        "_MOST_ROWS = 4",
        "Everything but for an alias.",
        "a version without a contract is not there yet",
        "def test_a_failed_step_is_said_to_have_failed() -> None:",
    ],
)
def test_a_replaced_phrase_is_found(text: str) -> None:
    assert list(phrases_in(text))


@pytest.mark.parametrize(
    "text", ["The one model of a server.", "A response comes from the model.", "MAX_ROWS = 4"]
)
def test_plain_text_has_no_findings(text: str) -> None:
    assert list(phrases_in(text)) == []


def test_a_name_that_is_no_noun_is_found() -> None:
    assert list(names_in("for one in batch:\n    pass\n"))


if __name__ == "__main__":
    for path in files():
        for finding in findings(path):
            print(finding)  # noqa: T201
