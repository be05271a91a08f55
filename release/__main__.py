"""`python -m release …`: the tools behind make's targets."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import httpx
import typer

from release import local
from release.server_process import ServerDidNotStart

cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)


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
        sys.exit(str(missing))
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
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        sys.exit(f"{url}: {error}. Is a server running there? `make run` starts two.")


if __name__ == "__main__":
    cli()
