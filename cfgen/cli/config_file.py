"""`--config run.toml`: the options of a command from a file."""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer

from cfgen.errors import UsageError


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take the file's options as defaults of the command that is called.

    Keys are long options without dashes, in either spelling ('batch-size', 'batch_size'). Raises
    UsageError for a file that is no TOML, an option that the command lacks, or a list where one
    value is expected.
    """
    if path is None or context.resilient_parsing:
        return path
    try:
        given = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(path, f"cannot be read ({error})", "a TOML file with options") from error
    known = {
        option.removeprefix("--"): parameter
        for parameter in context.command.params
        for option in parameter.opts
        if option.startswith("--") and option not in ("--config", "--help")
    }
    defaults: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("_", "-")
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise UsageError(
                f"{path}: {key}",
                f"'{context.info_name}' has no option --{name}",
                f"one of {', '.join(sorted(known))}",
                f"did you mean '{near[0]}'?" if near else "",
            )
        many = getattr(known[name], "multiple", False)
        if isinstance(value, dict) or (isinstance(value, list) and not many):
            raise UsageError(f"{path}: {key}", f"{value}", "one value")
        texts = value if isinstance(value, list) else [value]
        texts = [v if isinstance(v, bool | int | float) else str(v) for v in texts]
        defaults[known[name].name or name] = [str(v) for v in texts] if many else texts[0]
    context.default_map = {**(context.default_map or {}), **defaults}
    return path
