"""Options that several of the tools' commands have."""

from pathlib import Path
from typing import Annotated

import typer

from artifact.uri import file_path


def _model_path(text: str) -> Path:
    """Return the path of an artifact; the commands name what they expect in place of a URI."""
    return file_path(text) or Path(text)


Model = Annotated[
    Path, typer.Option(help="artifact, below this directory", parser=_model_path, metavar="PATH")
]
Store = Annotated[str, typer.Option(help="model store that must hold it")]
ImageTag = Annotated[str | None, typer.Option(help="tag instead of the git revision")]
Registry = Annotated[str | None, typer.Option(help="what comes before the images' names")]
