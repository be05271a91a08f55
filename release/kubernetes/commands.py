"""`python -m release deploy` and the like: the commands that change a cluster."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from artifact.contract import Name
from release.failures import failures_as_text
from release.images.build import ReleaseImages
from release.kubernetes import deploy as deployment
from release.kubernetes.canary import Canary, InconclusiveError, Trial
from release.kubernetes.deployment import find_instance
from release.kubernetes.kubectl import ClusterError, current_context
from release.kubernetes.manifests import Manifests
from release.kubernetes.resolve import Options, pair
from release.options import ImageTag, Model, Registry, Store
from serving.settings import Mode

INCONCLUSIVE = 3

cli = typer.Typer()

ModeOption = Annotated[str, typer.Option("--mode", help="model_in_image or model_load")]
Namespace = Annotated[str, typer.Option(help="namespace in the cluster")]
Source = Annotated[
    str | None,
    typer.Option(help="where load mode gets the model: volume, bucket or image_volume"),
]
LoadImage = Annotated[str, typer.Option(help="command that brings an image to the cluster")]
Record = Annotated[Path, typer.Option(help="compatibility.json of `make compatibility`")]


@cli.command()
def deploy(
    mode: ModeOption,
    model: Model,
    store: Store,
    namespace: Namespace,
    load_image: LoadImage,
    record: Record,
    source: Source = None,
    image_tag: ImageTag = None,
    registry: Registry = None,
) -> None:
    """Roll out an image and a model that fit each other; wait until they predict."""
    options = Options(namespace, source, load_image, record)
    with failures_as_text():
        _say_where(namespace)
        deployment.deploy(_pair(mode, model, store, options, image_tag, registry))


@cli.command()
def canary(
    mode: ModeOption,
    model: Model,
    store: Store,
    namespace: Namespace,
    load_image: LoadImage,
    record: Record,
    source: Source = None,
    image_tag: ImageTag = None,
    registry: Registry = None,
    weight: Annotated[int, typer.Option(help="share of the replicas in percent")] = 25,
    steps: Annotated[str, typer.Option(help="shares one after the other")] = "10,25,50,100",
    bake: Annotated[float, typer.Option(help="seconds that each step is watched")] = 60,
    min_requests: Annotated[int, typer.Option(help="on each track at each step")] = 500,
    agreement: Annotated[
        float, typer.Option(help="share of the stable model's golden rows to agree on")
    ] = 0.8,
    *,
    auto: Annotated[bool, typer.Option("--auto", help="step by step; else only weight")] = False,
) -> None:
    """Try a release beside the running one; with --auto promote or abort it by what it does."""
    options = Options(namespace, source, load_image, record)
    with failures_as_text():
        trial = Trial(_steps(steps), bake, min_requests, agreement)
        _say_where(namespace)
        manifests = _pair(mode, model, store, options, image_tag, registry)
        beside = Canary(namespace, manifests.instance, store)
        if not auto:
            beside.shift(manifests, weight)
            return
        try:
            beside.try_out(manifests, trial)
        except InconclusiveError as inconclusive:
            print(inconclusive, file=sys.stderr)
            sys.exit(INCONCLUSIVE)


@cli.command()
def promote(mode: ModeOption, model: Model, store: Store, namespace: Namespace) -> None:
    """Make the canary's release the stable one."""
    with failures_as_text():
        _say_where(namespace)
        Canary(namespace, _instance(namespace, mode, model), store).promote()


@cli.command()
def abort(mode: ModeOption, model: Model, store: Store, namespace: Namespace) -> None:
    """End the canary; the stable release serves on."""
    with failures_as_text():
        _say_where(namespace)
        Canary(namespace, _instance(namespace, mode, model), store).abort()


@cli.command()
def rollback(mode: ModeOption, model: Model, store: Store, namespace: Namespace) -> None:
    """Bring back the release before, image and model."""
    with failures_as_text():
        _say_where(namespace)
        deployment.roll_back(namespace, _instance(namespace, mode, model), store)


@cli.command()
def destroy(mode: ModeOption, model: Model, namespace: Namespace) -> None:
    """Remove a model's release in a mode from the cluster."""
    with failures_as_text():
        _say_where(namespace)
        deployment.destroy(namespace, _instance(namespace, mode, model))


def _say_where(namespace: str) -> None:
    context = current_context()
    if context is None:
        raise ClusterError(
            "no cluster is configured: kubectl has no current context. `make cluster` makes one."
        )
    print(f"Cluster of the context {context}, namespace {namespace}", flush=True)


def _pair(
    mode: str,
    model: Path,
    store: str,
    options: Options,
    image_tag: str | None,
    registry: str | None,
) -> Manifests:
    manifests = pair(
        ReleaseImages.of(model, store, image_tag, registry), _mode(mode), store, options
    )
    instance = find_instance(options.namespace, manifests.contract.name, manifests.mode)
    return replace(manifests, deployed_as=instance)


def _mode(mode: str) -> Mode:
    match mode:
        case "model_in_image" | "model_load":
            return mode
    raise ClusterError(f"MODE: expected model_in_image or model_load, got {mode}")


def _instance(namespace: str, mode: str, model: Path) -> str:
    """Return the name of a model's release in a mode; the model's version does not matter."""
    try:
        name = TypeAdapter(Name).validate_python(model.parent.name)
    except ValidationError:
        raise ClusterError(f"MODEL: expected <store>/<name>/<version>, got {model}") from None
    return find_instance(namespace, name, _mode(mode))


def _steps(steps: str) -> list[int]:
    try:
        shares = [int(step) for step in steps.split(",")]
    except ValueError:
        shares = []
    if not shares or shares != sorted(set(shares)) or not 1 <= shares[0] <= shares[-1] <= 100:
        raise ClusterError(f"STEPS: expected rising percentages such as 10,50,100, got {steps}")
    return shares
