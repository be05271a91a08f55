"""The command line behind `make train` and `make contract`.

Thin: options in, train.py or own.py called, errors out. What an operator can put right
is one message on stderr and exit status 1, never a traceback.
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

Name = Annotated[str | None, typer.Option(help="the model's name")]
Version = Annotated[str, typer.Option(help="a version the store does not have")]
Store = Annotated[str, typer.Option(help="a directory, file://, s3://, gs:// or az://")]
Alias = Annotated[str | None, typer.Option(help="an alias to set, such as stable")]
Purpose = Annotated[str | None, typer.Option(help="what the model is for")]
Owner = Annotated[str | None, typer.Option(help="who answers for the model")]

app = typer.Typer(
    help="Train a model, or describe one, and publish it in a model store.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command("train")
def train_command(  # noqa: PLR0913, PLR0917 - the variables of `make train`
    dataset: Annotated[str | None, typer.Option(help="iris, digits or diabetes")] = None,
    data: Annotated[str | None, typer.Option(help="a CSV file instead")] = None,
    target: Annotated[str | None, typer.Option(help="the CSV's column to predict")] = None,
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
    onnx: Annotated[str | None, typer.Option(help="the model file")] = None,
    sample: Annotated[str | None, typer.Option(help="rows.npz, input name -> array")] = None,
    labels: Annotated[str | None, typer.Option(help="a,b,c of the output's columns")] = None,
    state: Annotated[str | None, typer.Option(help="a,b inputs that a run before put out")] = None,
    batching: Annotated[str | None, typer.Option(help="true or false, to override")] = None,
    name: Name = None,
    version: Version = "1",
    store: Store = "models",
    alias: Alias = None,
    purpose: Purpose = None,
    owner: Owner = None,
) -> None:
    """Make the contract of any ONNX file and publish both."""
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
    # As an exception, so that what is half written is removed on the way out.
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    app(prog_name="python -m training")
