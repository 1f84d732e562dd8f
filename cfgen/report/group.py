"""The page of a cohort: a list of counterfactuals with thumbnails, and a page for each of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from cfgen import __version__
from cfgen.data.manifest import unique_key
from cfgen.data.table import Row
from cfgen.data.volume import write_atomically
from cfgen.data.volumes import sums
from cfgen.report import text as report_text
from cfgen.report.layers import thumbnail
from cfgen.report.page import Run, show, template, write_page

log = logging.getLogger("cfgen")
# Whose change the list shows; a page has all regions.
LISTED = ("brain", "lateral_ventricle", "hippocampus", "cortex")


@dataclass(frozen=True)
class Line:
    """A counterfactual in the list: addresses of its page and thumbnail, what is known of it."""

    subject: str
    session: str
    page: str = ""
    picture: str = ""
    label: str = ""
    conditions: str = ""
    round_trip: float | None = None
    # Change in percent of each of LISTED, None where it was not measured.
    changes: tuple[float | None, ...] = (None,) * len(LISTED)
    flags: tuple[report_text.Flag, ...] = ()
    error: str = ""


def write_entry(row: Row, run: Run, folder: Path) -> Line:
    """The page, the thumbnail and the line of one row."""
    shown = show(run)
    key = unique_key(row)
    # In a folder of their own: a subject may be called 'index'.
    write_page(run, folder / "pages" / f"{key}.html", shown, index="../index.html")
    picture = thumbnail(shown)
    write_atomically(
        folder / "thumbnails" / f"{key}.jpg", lambda temporary: temporary.write_bytes(picture)
    )
    rows = report_text.conditions(run.sidecar)
    lost = run.sidecar.round_trip_error
    text = ", ".join(
        f"{n} {was} → {will}" if new else f"{n} {was}" for n, was, _, will, new in rows
    )
    return Line(
        subject=row.subject,
        session=row.session,
        page="pages/" + quote(f"{key}.html"),
        picture="thumbnails/" + quote(f"{key}.jpg"),
        label=run.sidecar.intervention,
        conditions=text,
        round_trip=None if lost is None else 100 * lost,
        changes=_changes(run),
        flags=tuple(report_text.flags(run.sidecar)),
    )


def _changes(run: Run) -> tuple[float | None, ...]:
    before, after = sums(run.before.volumes), sums(run.after.volumes)
    pairs = [(before.get((n, "both")), after.get((n, "both"))) for n in LISTED]
    return tuple(
        report_text.Pair(was, now).percent if was is not None and now is not None else None
        for was, now in pairs
    )


def failed_line(row: Row, message: str) -> Line:
    """The line of a row that has no page."""
    bad = report_text.Flag("warn", "failed", message)
    return Line(row.subject, row.session, flags=(bad,), error=message)


def write_index(lines: Sequence[Line], path: Path) -> None:
    """Write the list; pages and thumbnails lie beside it."""
    shown = [replace(line, flags=tuple(f for f in line.flags if f.level != "ok")) for line in lines]
    text = template("group.html").render(
        version=__version__,
        statement=report_text.STATEMENT,
        lines=shown,
        listed=[name.replace("_", " ") for name in LISTED],
        codes=sorted({flag.code for line in shown for flag in line.flags}),
    )
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
