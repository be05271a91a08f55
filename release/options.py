"""Command-line options that several commands of `python -m release` share."""

from pathlib import Path
from typing import Annotated

import typer

from artifact.uri import file_path


def model_path(text: str) -> Path:
    """Return the path of an artifact; accept file:// as in STORE."""
    return file_path(text) or Path(text)


Model = Annotated[
    Path,
    typer.Option(
        help="artifact directory below this folder's models/", parser=model_path, metavar="PATH"
    ),
]
Store = Annotated[str, typer.Option(help="model store of the published artifacts")]
ImageTag = Annotated[
    str | None, typer.Option(help="tag of the server image (default: the git revision)")
]
Registry = Annotated[str | None, typer.Option(help="prefix of the image names")]
