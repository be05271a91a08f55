"""Object names and image tags: valid for every model, and different for different models."""

import itertools
import random
import re
import string
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from artifact.contract import Name, Version
from release.images.build import tag_of
from release.kubernetes.deployment_name import (
    TrackName,
    deployment_name,
    former_deployment_name,
    object_name,
)
from serving.settings import Mode
from tests.servers import DATASETS

MODES, TRACKS = get_args(Mode), get_args(TrackName)
DNS_LABEL = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
# Kubernetes appends a hash for the ReplicaSet and five characters for the pod.
MAX_DEPLOYMENT = 63 - len("-0123456789") - len("abcde")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
# Names that earlier versions deployed, before any name had a hash.
UNCHANGED = [*DATASETS, "my-model", "a", "a--b", "churn-1735689600", "x" * 25, "iris-model-load"]

# Cut at any length, `DASHES` and `a-` + `DASHES` have the same beginning.
DASHES = "-".join("a" * 32)


def is_valid(kind: Any, text: str) -> bool:
    try:
        TypeAdapter(kind).validate_python(text)
    except ValidationError:
        return False
    return True


def short(kind: Any, alphabet: str, length: int) -> list[str]:
    """Return every valid short name; many become equal when `.` and `_` are replaced."""
    words = (
        "".join(letters)
        for count in range(1, length + 1)
        for letters in itertools.product(alphabet, repeat=count)
    )
    return [word for word in words if is_valid(kind, word)]


def long(kind: Any, alphabet: str) -> list[str]:
    """Return names of every length that differ in a single character, at any position."""
    choose = random.Random(0)  # noqa: S311 - no secret
    base = "".join(choose.choices(string.ascii_lowercase, k=63))
    names = {base[:length] for length in range(1, 64)}
    for _ in range(2000):
        name = list(base[: choose.randint(20, 63)])
        name[choose.randrange(len(name))] = choose.choice(alphabet)
        names.add("".join(name))
    return [name for name in sorted(names) if is_valid(kind, name)]


def names() -> list[str]:
    return [*short(Name, "a1-._", 5), *long(Name, "z0-._"), *UNCHANGED]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("model", UNCHANGED)
def test_a_valid_name_is_unchanged(model: str, mode: str) -> None:
    assert deployment_name(model, mode) == f"{model}-{mode.replace('_', '-')}"


@pytest.mark.parametrize("mode", MODES)
def test_names_that_earlier_versions_could_deploy_are_unchanged(mode: str) -> None:
    """Otherwise a deployment could not be updated in place."""
    candidates = [model for model in names() if re.fullmatch(r"[a-z][a-z0-9-]*", model)]
    deployable = [model for model in candidates if len(former_deployment_name(model, mode)) <= 40]

    assert len(deployable) > 200
    for model in deployable:
        assert deployment_name(model, mode) == former_deployment_name(model, mode)


@pytest.mark.parametrize("model", ["my_model", "my.model", "7seas", "x" * 30, "a.b", "a.-_b"])
def test_a_changed_name_stays_readable(model: str) -> None:
    label = r"m?-?[a-z0-9-]+--[0-9a-f]{10}-model-load"
    name = deployment_name(model, "model_load")

    assert re.fullmatch(label, name)
    assert re.sub("[^a-z0-9]", "-", model)[:15] in name


def test_object_names_are_valid_and_unique() -> None:
    """Over all modes and tracks, and also if a model has the name of another's objects."""
    models = {*names(), *generated_names()}
    objects = [
        object_name(deployment_name(model, mode), track)
        for model in models
        for mode in MODES
        for track in TRACKS
    ]

    assert len(models) > 2000
    assert len(set(objects)) == len(objects)
    for name in objects:
        assert DNS_LABEL.fullmatch(name), name
        assert len(name) <= MAX_DEPLOYMENT, name


def generated_names() -> Iterator[str]:
    """Yield models, and the names of their objects with and without the mode."""
    for model, mode in itertools.product(["my_model", "my-model", "7seas", "y" * 63], MODES):
        name = deployment_name(model, mode)
        yield from (model, name, name.removesuffix(f"-{mode.replace('_', '-')}"))


@pytest.mark.parametrize(
    ("parts", "tag"),
    [
        (("4be1f0a9c2d3", "iris", "1"), "4be1f0a9c2d3-iris-1"),
        (("4be1f0a9c2d3-dirty", "my_model", "1.0"), "4be1f0a9c2d3-dirty-my_model-1.0"),
        (("iris", "1"), "iris-1"),
    ],
)
def test_an_unambiguous_tag_is_unchanged(parts: tuple[str, ...], tag: str) -> None:
    assert tag_of(*parts) == tag


def test_tags_are_valid_and_unique() -> None:
    """Over all servers, models, and versions, and also if a version looks like a generated tag."""
    models = [*short(Name, "a1-", 3), *long(Name, "z-")[::40], "a" * 63, DASHES]
    versions = [*short(Version, "a1-", 3), "A", "1.0", "1-2", "9" * 63, DASHES]
    servers = [(), ("a",), ("a-a",), ("a-1",), ("a-1-",), ("b" * 128,)]
    every = {
        (*server, model, version)
        for server, model, version in itertools.product(servers, models, versions)
    }
    for parts in random.Random(0).sample(sorted(every), 1000):  # noqa: S311 - no secret
        every.update(readings(tag_of(*parts)))

    tags = [(len(parts), tag_of(*parts)) for parts in every]

    assert len(set(tags)) == len(tags) > 5_000
    assert all(TAG.fullmatch(tag) for _, tag in tags)


def readings(tag: str) -> Iterator[tuple[str, ...]]:
    """Yield every way to split a tag at its dashes into a server, a model, and a version."""
    words = tag.split("-")
    for first, second in itertools.combinations(range(len(words)), 2):
        server, model, version = words[:first], words[first:second], words[second:]
        parts = ["-".join(part) for part in (server, model, version)]
        if is_valid(Name, parts[1]) and is_valid(Version, parts[2]):
            yield tuple(parts[not first :])
