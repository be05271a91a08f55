"""`python -m release …`: the tools behind make's targets."""

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
from release.inventory.drift import disagreements, known_problems, notes
from release.inventory.replica import ask
from release.inventory.table import FORMATS, show
from release.kubernetes import commands
from release.kubernetes.pods import addresses
from release.local import run_local as local
from release.local.server_process import ServerDidNotStart
from release.options import ImageTag, Model, Registry, Store

cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
cli.add_typer(commands.cli)


@cli.command()
def run(
    model: Annotated[
        Path, typer.Option(help="artifact; a data set's is trained if it is not there")
    ],
    image_port: Annotated[int, typer.Option(help="port of model_in_image; 0 is any free one")],
    load_port: Annotated[int, typer.Option(help="port of model_load; 0 is any free one")],
) -> None:
    """Start both servers, show a prediction from each, stay up until Ctrl-C."""
    try:
        local.run(model, image_port, load_port)
    except FileNotFoundError as missing:
        sys.exit(redact(str(missing)))
    except ServerDidNotStart:
        sys.exit(1)  # it said why
    except subprocess.CalledProcessError as failed:
        sys.exit(failed.returncode)  # so did the training
    except KeyboardInterrupt:
        pass


@cli.command()
def predict(
    url: Annotated[str, typer.Option(help="address of a server")],
) -> None:
    """Ask a server for a prediction of its own sample."""
    try:
        local.show(url, url)
    except httpx.InvalidURL:  # its text holds parts of the URL
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
    """Build the image of each mode, and say what they weigh."""
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
    """Write what is in each image as CycloneDX."""
    from release.images.sbom import write  # noqa: PLC0415 - its library is for development

    with failures_as_text():
        release = ReleaseImages.of(model, store, image_tag, registry)
        for image in (release.model_in_image, release.model_load):
            print(write(image, to))


@cli.command()
def build_model(model: Model, store: Store, registry: Registry = None) -> None:
    """Build the artifact's own image, which Kubernetes can mount."""
    with failures_as_text():
        ReleaseImages.of(model, store, None, registry).build_model_image()


@cli.command()
def inventory(
    store: Store,
    urls: Annotated[
        str, typer.Option(help="addresses of servers, by spaces; else the cluster is asked")
    ] = "",
    format: Annotated[  # noqa: A002 - the option's name
        str, typer.Option(help="table, json, markdown or html")
    ] = "table",
) -> None:
    """Say what runs where, and what of it does not agree; 1 when anything does not."""
    with failures_as_text():
        replicas, silent = ask(addresses(urls.split()))
        problems, unchecked = known_problems(replicas)
        found = list(dict.fromkeys([*silent, *disagreements(replicas, store), *problems]))
        noted = list(dict.fromkeys([*unchecked, *notes(replicas)]))
    if not (replicas or silent):
        found = ["nothing runs there: the cluster has no pod of this project"]
    _say(format, show, FORMATS, replicas, found, noted)
    sys.exit(bool(found))


@cli.command()
def compatibility(
    store: Store,
    to: Annotated[Path, typer.Option(help="directory for the page and the record")],
    lock: Annotated[
        list[Path] | None, typer.Option(help="lock file that is a server, too; may be repeated")
    ] = None,
    registry: Registry = None,
) -> None:
    """Find which server serves which artifact, by loading each in each."""
    with failures_as_text():
        matrix = Matrix(Compatibility.find(store, lock or (), registry))
        written = matrix.write(to)
    matrix.show()
    print(*written, sep="\n")


@cli.command()
def prune(
    store: Annotated[str, typer.Option(help="model store whose artifacts are counted")],
    keep: Annotated[int, typer.Option(help="newest images that stay, of each mode and model")] = 3,
    registry: Registry = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="remove; else only show")] = False,
) -> None:
    """Remove the images that nothing runs and no rollback needs."""
    with failures_as_text():
        sys.exit(prune_images(store, keep, yes=yes, registry=registry))


@cli.command()
def audit(
    lock: Annotated[
        list[Path] | None, typer.Option(help="lock instead of the project's; may be repeated")
    ] = None,
    format: Annotated[str, typer.Option(help="table or json")] = "table",  # noqa: A002 - the option's name
) -> None:
    """Check locks and images for vulnerabilities and ends of life; 1 if any, 2 if unchecked."""
    try:
        result = report.audit(lock or LOCKS)
    except (AuditError, OSError) as error:
        print(f"exit status 2: {error}", file=sys.stderr)
        sys.exit(2)
    _say(format, report.show, {"json": report.as_json}, result)
    sys.exit(report.exit_status(result))


def _say(
    form: str,
    show: Callable[..., None],
    forms: Mapping[str, Callable[..., str]],
    *what: object,
) -> None:
    """Show something as a table, or print it in another form."""
    if form == "table":
        show(*what)
    elif form in forms:
        print(forms[form](*what))
    else:
        sys.exit(f"FORMAT: expected table, {', '.join(forms)}, got {form}")


if __name__ == "__main__":
    cli()
