"""Options that several of the tools' commands have."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[Path, typer.Option(help="artifact, below this directory")]
Store = Annotated[str, typer.Option(help="model store that must hold it")]
ImageTag = Annotated[str | None, typer.Option(help="tag instead of the git revision")]
Registry = Annotated[str | None, typer.Option(help="what comes before the images' names")]
