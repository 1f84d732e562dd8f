"""The commands together, and what a command's end means to a script.

Heavy libraries are imported inside the commands, so that `cfgen --help` answers at once. Results go
to standard output, progress and warnings to standard error.
"""

from __future__ import annotations

import inspect
import re
import signal
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from cfgen import __version__
from cfgen.cli.augment_iap import augment_iap
from cfgen.cli.counterfactual import counterfactual
from cfgen.cli.edit_masks import edit_masks
from cfgen.cli.evaluate import evaluate
from cfgen.cli.finetune_cycle import finetune_cycle
from cfgen.cli.fit_scm import fit_scm
from cfgen.cli.generate import generate
from cfgen.cli.import_weights import import_weights
from cfgen.cli.info import info
from cfgen.cli.preprocess import preprocess
from cfgen.cli.report import report
from cfgen.cli.sd_edit import sd_edit
from cfgen.cli.sd_generate import sd_generate
from cfgen.cli.sd_tune import sd_tune
from cfgen.cli.segment import segment
from cfgen.cli.simulate import simulate
from cfgen.cli.train_ae import train_ae
from cfgen.cli.train_ldm import train_ldm
from cfgen.cli.train_predictor import train_predictor
from cfgen.cli.train_segmenter import train_segmenter
from cfgen.cli.undo import undo
from cfgen.errors import (
    EXIT_INTERRUPTED,
    EXIT_OUT_OF_MEMORY,
    EXIT_UNUSABLE_INPUT,
    CfgenError,
)

app = typer.Typer(
    name="cfgen",
    help="Counterfactual brain MRI: what would this brain look like at another age or sex?\n\n"
    "Research use, not for diagnosis.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _help(command: Callable[..., None]) -> str:
    """The docstring, of which lines with a command stay as they are, to be copied."""
    return re.sub(
        r"\n\n(?= *(?:cfgen|torchrun) )", "\n\n\b\n", inspect.cleandoc(command.__doc__ or "")
    )


_COMMANDS: dict[str, Callable[..., None]] = {
    "counterfactual": counterfactual,
    "augment-iap": augment_iap,
    "generate": generate,
    "report": report,
    "info": info,
    "preprocess": preprocess,
    "segment": segment,
    "edit-masks": edit_masks,
    "simulate": simulate,
    "evaluate": evaluate,
    "undo": undo,
    "train-ae": train_ae,
    "train-ldm": train_ldm,
    "finetune-cycle": finetune_cycle,
    "train-predictor": train_predictor,
    "train-segmenter": train_segmenter,
    "fit-scm": fit_scm,
    "import-weights": import_weights,
    "sd-tune": sd_tune,
    "sd-edit": sd_edit,
    "sd-generate": sd_generate,
}
for _name, _command in _COMMANDS.items():
    app.command(_name, help=_help(_command))(_command)


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


class Stopped(BaseException):
    """SIGTERM or SIGINT outside a loop that asks for it; passes every `except Exception`."""


def _stop(number: int, frame: object) -> None:
    raise Stopped(signal.Signals(number).name)


def main() -> None:
    """Entry point: errors that a user can mend are one line and an exit code, never a traceback."""
    # A path may have letters that the terminal's encoding lacks; the work is done by then.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    handlers = {s: signal.signal(s, _stop) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        app()
    except CfgenError as error:
        _end(str(error), error.exit_code)
    except Stopped as error:
        message = f"stopped by {error}; nothing is left half written, the same command starts again"
        _end(message, EXIT_INTERRUPTED)
    except MemoryError:
        _end("out of memory; close other programs or use fewer --threads", EXIT_OUT_OF_MEMORY)
    except (RuntimeError, ImportError, OSError) as error:
        # torch reports memory of either device as a RuntimeError, the loader as a library that
        # cannot be mapped.
        if any(text in str(error) for text in OUT_OF_MEMORY):
            message = f"out of memory ({error}); use --device cpu or free memory"
            _end(message, EXIT_OUT_OF_MEMORY)
        if not (isinstance(error, OSError) and error.filename):
            raise
        message = f"{error.filename}: {error.strerror}; check the path and its permissions"
        _end(message, EXIT_UNUSABLE_INPUT)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "failed to map segment",
)


def _end(message: str, code: int) -> None:
    print(f"cfgen: {message}", file=sys.stderr)
    sys.exit(code)
