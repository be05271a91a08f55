"""The commands that change a cluster, such as `python -m release deploy`."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from artifact.contract import Name
from release.failures import failures_as_text
from release.images.build import ReleaseImages
from release.kubernetes import deploy as deploying
from release.kubernetes.canary import Canary, CanaryPlan, InconclusiveError
from release.kubernetes.errors import ReleaseError
from release.kubernetes.kubectl import ClusterError, current_context
from release.kubernetes.manifests import Manifests
from release.kubernetes.resolve import Options, resolve_release
from release.kubernetes.resources import memory_bytes
from release.kubernetes.track import find_deployment
from release.options import ImageTag, Model, Registry, Store
from serving.settings import Mode

# The exit status of a canary that had too little traffic; 1 is a failure.
INCONCLUSIVE = 3

cli = typer.Typer()

ModeOption = Annotated[str, typer.Option("--mode", help="model_in_image or model_load")]
Namespace = Annotated[str, typer.Option(help="namespace in the cluster")]
Source = Annotated[
    str | None,
    typer.Option(help="where model_load gets the model: volume, bucket, or image_volume"),
]
LoadImage = Annotated[str, typer.Option(help="command that brings an image to the cluster")]
Record = Annotated[Path, typer.Option(help="compatibility.json of `make compatibility`")]
Memory = Annotated[
    str | None,
    typer.Option(help="memory of a server, such as 512Mi, instead of the value from k8s/"),
]


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
    memory: Memory = None,
) -> None:
    """Roll out a release and wait until every replica predicts."""
    options = Options(namespace, source, load_image, record, memory)
    with failures_as_text():
        _print_context(namespace)
        deploying.deploy(_resolve(mode, model, store, options, image_tag, registry))


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
    memory: Memory = None,
    weight: Annotated[int, typer.Option(help="share of the replicas in percent")] = 25,
    steps: Annotated[
        str, typer.Option(help="with --auto: shares in percent; 100 promotes")
    ] = "10,25,50,100",
    bake: Annotated[float, typer.Option(help="with --auto: seconds to watch each step")] = 60,
    min_requests: Annotated[
        int, typer.Option(help="with --auto: requests that each track must answer in each step")
    ] = 500,
    agreement: Annotated[
        float,
        typer.Option(help="with --auto: share of the stable model's golden rows to agree on"),
    ] = 0.8,
    *,
    auto: Annotated[
        bool, typer.Option("--auto", help="run all steps, then promote or abort")
    ] = False,
) -> None:
    """Run another release beside the stable one and shift requests to it."""
    options = Options(namespace, source, load_image, record, memory)
    with failures_as_text():
        plan = CanaryPlan(_steps(steps), bake, min_requests, agreement)
        _print_context(namespace)
        manifests = _resolve(mode, model, store, options, image_tag, registry)
        track = Canary(namespace, manifests.deployment, store)
        if not auto:
            track.shift(manifests, weight)
            return
        try:
            track.run(manifests, plan)
        except InconclusiveError as inconclusive:
            print(inconclusive, file=sys.stderr)
            sys.exit(INCONCLUSIVE)


@cli.command()
def promote(mode: ModeOption, model: Model, store: Store, namespace: Namespace) -> None:
    """Make the canary's release the stable one."""
    with failures_as_text():
        _print_context(namespace)
        Canary(namespace, _find(namespace, mode, model), store).promote()


@cli.command()
def abort(mode: ModeOption, model: Model, store: Store, namespace: Namespace) -> None:
    """Remove the canary; the stable release keeps serving."""
    with failures_as_text():
        _print_context(namespace)
        Canary(namespace, _find(namespace, mode, model), store).abort()


@cli.command()
def rollback(mode: ModeOption, model: Model, store: Store, namespace: Namespace) -> None:
    """Return to the previous release, image and model."""
    with failures_as_text():
        _print_context(namespace)
        deploying.roll_back(namespace, _find(namespace, mode, model), store)


@cli.command()
def destroy(mode: ModeOption, model: Model, namespace: Namespace) -> None:
    """Delete a model's deployment in a mode from the cluster."""
    with failures_as_text():
        _print_context(namespace)
        deploying.destroy(namespace, _find(namespace, mode, model))


def _print_context(namespace: str) -> None:
    context = current_context()
    if context is None:
        raise ClusterError(
            "No cluster is configured: kubectl has no current context. `make cluster` creates a "
            "cluster."
        )
    print(f"Cluster of the context {context}, namespace {namespace}", flush=True)


def _resolve(
    mode: str,
    model: Path,
    store: str,
    options: Options,
    image_tag: str | None,
    registry: str | None,
) -> Manifests:
    if options.memory:
        memory_bytes(options.memory)  # an invalid value is reported before anything is done
    images = ReleaseImages.of(model, store, image_tag, registry)
    manifests = resolve_release(images, _mode(mode), store, options)
    name = find_deployment(options.namespace, manifests.contract.name, manifests.mode)
    return replace(manifests, existing_name=name)


def _mode(mode: str) -> Mode:
    match mode:
        case "model_in_image" | "model_load":
            return mode
    raise ReleaseError(f"MODE: expected model_in_image or model_load, got {mode}")


def _find(namespace: str, mode: str, model: Path) -> str:
    """Return the name of a model's deployment in a mode; the version in MODEL is ignored."""
    try:
        name = TypeAdapter(Name).validate_python(model.parent.name)
    except ValidationError:
        raise ReleaseError(f"MODEL: expected <store>/<name>/<version>, got {model}") from None
    return find_deployment(namespace, name, _mode(mode))


def _steps(steps: str) -> list[int]:
    try:
        shares = [int(step) for step in steps.split(",")]
    except ValueError:
        shares = []
    if not shares or shares != sorted(set(shares)) or not 1 <= shares[0] <= shares[-1] <= 100:
        raise ReleaseError(f"STEPS: expected rising percentages such as 10,50,100, got {steps}")
    return shares
