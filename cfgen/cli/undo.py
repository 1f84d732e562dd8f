"""`cfgen undo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cfgen.cli.options import (
    Config,
    Overwrite,
    Quiet,
    Verbose,
)
from cfgen.cli.show import setup


def undo(
    image: Annotated[Path, typer.Option("--in", "-i", help="Edited image on the model grid.")],
    prepared: Annotated[
        Path, typer.Option("--prepared", help="Prepared image that 'preprocess' wrote.")
    ],
    scan: Annotated[Path, typer.Option("--scan", help="The scan that was prepared.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Image to write, on the scan's grid.")],
    overwrite: Overwrite = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Carry an edit of a prepared image back to the scan it came from."""
    setup(0, verbose, quiet)
    from cfgen.jobs.undo import undo as job

    print(job(image, prepared, scan, out, overwrite))
