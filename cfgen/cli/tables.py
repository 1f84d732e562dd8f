"""What a bundle is, and what the gate says, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

VERDICTS = {"ok": "green", "warn": "yellow", "refuse": "bold red"}


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[RenderableType]]) -> Table:
    """A plain table; the last column takes the room that is left."""
    view = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for n, column in enumerate(columns):
        last = n == len(columns) - 1
        view.add_column(column, style="" if n else "cyan", overflow="fold", no_wrap=not last)
    for row in rows:
        view.add_row(*(escape(cell) if isinstance(cell, str) else cell for cell in row))
    return view


def verdicts(checked: Sequence[Any]) -> Table:
    """Scans as `jobs.check` found them."""
    rows = [
        (
            Text(scan.verdict, VERDICTS[scan.verdict]),
            Text(scan.row.image.name, overflow="fold"),
            scan.brain,
            "\n".join(scan.reasons),
        )
        for scan in checked
    ]
    view = Table(box=None, pad_edge=False)
    view.add_column("verdict")
    view.add_column("scan", overflow="fold", ratio=2)
    view.add_column("brain from")
    view.add_column("why", overflow="fold", ratio=5)
    for verdict, name, brain, why in rows:
        view.add_row(verdict, name, escape(brain), escape(why))
    return view


def bundle_page(info: dict[str, Any]) -> list[RenderableType]:
    """`jobs.info.describe_json` as text and tables."""
    bundle = info["bundle"]
    libraries = ", ".join(f"{k} {v}" for k, v in info["libraries"].items())
    head = Text.assemble(
        (f"cfgen {info['cfgen']}", "bold"),
        f", Python {info['python']}, {libraries}\n"
        f"{info['device']}, {info['threads']} threads, {info['number_type']} networks\n\n",
        (f"bundle {bundle['name']}", "bold"),
        f" ({bundle['path']})\nsha256 {bundle['sha256']}\n{bundle['grid_text']}\n",
    )
    parts = [
        (name, part["size"], part["training"], "\n".join(part.get("measured_text", [])))
        for name, part in bundle["parts"].items()
    ]
    page: list[RenderableType] = [
        head,
        table("Conditions", ("name", "in training"), bundle["conditions_text"].items()),
        "",
        table("Parts", ("name", "size", "trained on", "measured"), parts),
        "",
        table("Data", ("", ""), ((k, str(v)) for k, v in bundle["data"].items())),
    ]
    if bundle["card_text"]:
        ranges = ((span, words) for words, span in bundle["card_text"].items())
        page += ["", table("Training card", ("lowest to highest", "in training"), ranges)]
    return page
