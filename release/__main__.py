"""`python -m release COMMAND`: the tools that `make` runs."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import httpx
import typer

from artifact.redact import redact
from release.audit import report
from release.audit.check import AuditError
from release.audit.pins import LOCKS
from release.compatibility.matrix import Matrix
from release.compatibility.record import Compatibility
from release.failures import failures_as_text
from release.images.build import ReleaseImages
from release.images.prune import prune as prune_images
from release.inventory.drift import find_drift, find_notes, known_problems
from release.inventory.replica import query_replicas
from release.inventory.table import FORMATS, show
from release.kubernetes import commands
from release.kubernetes.pods import addresses
from release.local import run_local as local
from release.local.server_process import ServerDidNotStart
from release.options import ImageTag, Model, Registry, Store, model_path

cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
cli.add_typer(commands.cli)


@cli.command()
def run(
    model: Annotated[
        Path,
        typer.Option(
            help="artifact; a missing artifact of a known data set is trained",
            parser=model_path,
            metavar="PATH",
        ),
    ],
    image_port: Annotated[int, typer.Option(help="port of model_in_image; 0: any free port")],
    load_port: Annotated[int, typer.Option(help="port of model_load; 0: any free port")],
) -> None:
    """Start one server of each mode, print a prediction of each, and run until Ctrl-C."""
    try:
        local.run(model, image_port, load_port)
    except FileNotFoundError as missing:
        sys.exit(redact(str(missing)))
    except ServerDidNotStart:
        sys.exit(1)  # the server has logged the reason
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # the training has printed the reason
    except KeyboardInterrupt:
        pass


@cli.command()
def predict(
    url: Annotated[str, typer.Option(help="address of a server")],
) -> None:
    """Send the sample of a server's model to the server and print the prediction."""
    try:
        local.show(url, url)
    except httpx.InvalidURL:  # its message contains parts of the URL
        sys.exit(f"{redact(url)}: expected http://host:port")
    except httpx.HTTPError as error:
        sys.exit(redact(f"{url}: {error}. Is a server running there? `make run` starts two."))


@cli.command()
def build(
    model: Model,
    store: Store,
    image_tag: ImageTag = None,
    registry: Registry = None,
) -> None:
    """Build the image of each mode and print the sizes of the layers."""
    with failures_as_text():
        ReleaseImages.of(model, store, image_tag, registry).build()


@cli.command()
def sbom(
    model: Model,
    store: Store,
    to: Annotated[Path, typer.Option(help="directory for the files")],
    image_tag: ImageTag = None,
    registry: Registry = None,
) -> None:
    """Write a software bill of materials (CycloneDX) for the image of each mode."""
    # The library is in the group `dev`: most users do not need it.
    from release.images.sbom import write  # noqa: PLC0415

    with failures_as_text():
        images = ReleaseImages.of(model, store, image_tag, registry)
        for image in (images.model_in_image, images.model_load):
            print(write(image, to))


@cli.command()
def build_model(model: Model, store: Store, registry: Registry = None) -> None:
    """Build an image that contains only the artifact, for a Kubernetes image volume."""
    with failures_as_text():
        ReleaseImages.of(model, store, None, registry).build_model_image()


@cli.command()
def inventory(
    store: Store,
    urls: Annotated[
        str, typer.Option(help="URLs of servers, separated by spaces (default: all pods)")
    ] = "",
    format: Annotated[  # noqa: A002 - the name of the option
        str, typer.Option(help="table, json, markdown, or html")
    ] = "table",
) -> None:
    """List what each running replica serves. Exit status 1 if anything disagrees."""
    with failures_as_text():
        replicas, unreachable = query_replicas(addresses(urls.split()))
        problems, unchecked = known_problems(replicas)
        disagreements = _unique(*unreachable, *find_drift(replicas, store), *problems)
        notes = _unique(*unchecked, *find_notes(replicas))
    if not (replicas or unreachable):
        disagreements = ["no replica found: the cluster has no pod of this project"]
    _print_in_format(format, show, FORMATS, replicas, disagreements, notes)
    sys.exit(bool(disagreements))


@cli.command()
def compatibility(
    store: Store,
    to: Annotated[Path, typer.Option(help="directory for the page and the record")],
    lock: Annotated[
        list[Path] | None,
        typer.Option(help="lock file; its libraries count as a server (repeatable)"),
    ] = None,
    registry: Registry = None,
) -> None:
    """Load every artifact in every server image and record which combinations work."""
    with failures_as_text():
        matrix = Matrix(Compatibility.check(store, lock or (), registry))
        paths = matrix.write(to)
    matrix.show()
    print(*paths, sep="\n")


@cli.command()
def prune(
    store: Annotated[str, typer.Option(help="model store whose artifacts are counted")],
    keep: Annotated[
        int, typer.Option(help="number of newest images to keep for each mode and model")
    ] = 3,
    registry: Registry = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="remove them (default: list them)")] = False,
) -> None:
    """Remove images that no container, no cluster, and no rollback needs."""
    with failures_as_text():
        sys.exit(prune_images(store, keep, yes=yes, registry=registry))


@cli.command()
def audit(
    lock: Annotated[
        list[Path] | None,
        typer.Option(help="lock file to check instead of the project's (repeatable)"),
    ] = None,
    format: Annotated[str, typer.Option(help="table or json")] = "table",  # noqa: A002 - the name of the option
) -> None:
    """Check for vulnerabilities and end-of-life dates.

    Exit status: 1 if any was found, 2 if a check could not run.
    """
    try:
        result = report.audit(lock or LOCKS)
    except (AuditError, OSError) as error:
        print(f"exit status 2: {error}", file=sys.stderr)
        sys.exit(2)
    _print_in_format(format, report.show, {"json": report.as_json}, result)
    sys.exit(report.exit_status(result))


def _unique(*lines: str) -> list[str]:
    return list(dict.fromkeys(lines))


def _print_in_format(
    name: str,
    show_table: Callable[..., None],
    formats: Mapping[str, Callable[..., str]],
    *content: object,
) -> None:
    """Print the content as a table or in one of the formats."""
    if name == "table":
        show_table(*content)
    elif name in formats:
        print(formats[name](*content))
    else:
        sys.exit(f"FORMAT: expected table, {', '.join(formats)}, got {name}")


if __name__ == "__main__":
    cli()
