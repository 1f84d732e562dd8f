"""`cfgen info`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from cfgen.cli.options import (
    DEFAULT_BUNDLE,
    AsJson,
)
from cfgen.cli.show import is_live, print_rich, setup


def info(
    bundle: Annotated[Path, typer.Argument(help="Model bundle.")] = DEFAULT_BUNDLE,
    as_json: AsJson = False,
) -> None:
    """Print what a bundle holds, where it was trained, and what this machine offers."""
    setup(0, False, True)
    from cfgen.jobs.info import describe, describe_json

    if as_json:
        print(json.dumps(describe_json(bundle), indent=2))
    elif is_live(sys.stdout):
        from cfgen.cli.tables import bundle_page

        print_rich(*bundle_page(describe_json(bundle)))
    else:
        print(describe(bundle))
