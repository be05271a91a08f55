"""The command line of `make train` and `make contract`.

Errors that the user can fix are one message on stderr and exit status 1, without a traceback.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from artifact.errors import StoreError
from artifact.redact import redact
from training.errors import TrainingError
from training.import_onnx import make_contract
from training.train import train

Name = Annotated[str | None, typer.Option(help="name of the model")]
Version = Annotated[str, typer.Option(help="new version; a published version is never overwritten")]
Store = Annotated[str, typer.Option(help="model store: directory, file://, s3://, gs://, or az://")]
Alias = Annotated[str | None, typer.Option(help="alias to set to this version, such as stable")]
Purpose = Annotated[str | None, typer.Option(help="purpose of the model")]
Owner = Annotated[str | None, typer.Option(help="owner of the model")]

app = typer.Typer(
    help="Train a model, or write the contract of an ONNX file, and publish it.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command("train")
def train_command(  # noqa: PLR0913, PLR0917 - the variables of `make train`
    dataset: Annotated[str | None, typer.Option(help="iris, digits, or diabetes")] = None,
    data: Annotated[str | None, typer.Option(help="CSV file, instead of a data set")] = None,
    target: Annotated[str | None, typer.Option(help="column to predict")] = None,
    task: Annotated[str | None, typer.Option(help="classification or regression")] = None,
    name: Name = None,
    version: Version = "1",
    store: Store = "models",
    alias: Alias = None,
    purpose: Purpose = None,
    owner: Owner = None,
) -> None:
    """Train a model and publish it with its contract."""
    with _errors_as_text():
        train(
            dataset=dataset,
            data=data,
            target=target,
            task=task,
            name=name,
            version=version,
            store=store,
            alias=alias,
            purpose=purpose,
            owner=owner,
            console=Console(),
        )


@app.command("contract")
def contract_command(  # noqa: PLR0913, PLR0917 - the variables of `make contract`
    onnx: Annotated[str | None, typer.Option(help="ONNX file")] = None,
    sample: Annotated[str | None, typer.Option(help="rows.npz with one array per input")] = None,
    labels: Annotated[str | None, typer.Option(help="labels a,b,c of the output")] = None,
    state: Annotated[str | None, typer.Option(help="state inputs a,b")] = None,
    batching: Annotated[
        str | None, typer.Option(help="true or false: overrides the decision")
    ] = None,
    name: Name = None,
    version: Version = "1",
    store: Store = "models",
    alias: Alias = None,
    purpose: Purpose = None,
    owner: Owner = None,
) -> None:
    """Write the contract of an ONNX file and publish both."""
    with _errors_as_text():
        make_contract(
            onnx_file=onnx,
            sample=sample,
            labels=labels,
            state=state,
            batching=batching,
            name=name,
            version=version,
            store=store,
            alias=alias,
            purpose=purpose,
            owner=owner,
            console=Console(),
        )


@contextmanager
def _errors_as_text() -> Iterator[None]:
    try:
        yield
    except (TrainingError, StoreError, OSError) as error:
        sys.stdout.flush()
        sys.stderr.write(f"{redact(str(error))}\n")
        raise typer.Exit(1) from None


def _terminated(number: int, _frame: FrameType | None) -> None:
    # An exception, so that unfinished files are removed before the process exits.
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    app(prog_name="python -m training")
