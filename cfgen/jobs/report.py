"""Pages to look at counterfactuals: of one, or of a manifest with a list of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cfgen.batch.lists import write_lists
from cfgen.batch.rows import Made, run_rows
from cfgen.data.manifest import unique_key
from cfgen.data.names import check_outputs
from cfgen.data.table import Row
from cfgen.data.volume import refuse_existing
from cfgen.errors import UsageError
from cfgen.measure.ruler import Ruler
from cfgen.report.group import Line, failed_line, write_entry, write_index
from cfgen.report.page import Run, read_run, write_page
from cfgen.report.text import Volumes


@dataclass(frozen=True)
class Group:
    """The list that was written, the rows without a page, and those that a signal left."""

    index: Path
    failed: list[Row] = field(default_factory=list)
    left: list[Row] = field(default_factory=list)


def report_one(
    edited: Path,
    factual: Path | None,
    out: Path,
    ruler: Ruler,
    targets: Volumes,
    overwrite: bool = False,
) -> Path:
    """Write the page of a counterfactual that lies on disk. Raises CfgenError."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError("--out", f"'{out}' is no page", "a file named *.html")
    refuse_existing(out, overwrite)
    write_page(replace(read_run(edited, factual, ruler), targets=targets), out)
    return out


def report_group(rows: Sequence[Row], out: Path, ruler: Ruler, overwrite: bool = False) -> Group:
    """A page and a thumbnail for every row of a manifest of counterfactuals, and index.html.

    The scan of a row is its column `factual_image`, else looked for beside the image. A row that
    fails is logged, listed with its error, and goes to failed.csv. Raises UsageError where the list
    exists already, ImageError for a folder that cannot be written.
    """
    index = out / "index.html"
    refuse_existing(index, overwrite)
    check_outputs(out / "pages" / f"{unique_key(row)}.html" for row in rows)
    lines: dict[str, Line] = {}
    last: Run | None = None

    def look(row: Row) -> Line:
        nonlocal last
        factual = row.extra.get("factual_image")
        last = read_run(row.image, Path(factual) if factual else None, ruler, last)
        return write_entry(row, last, out)

    def finish(row: Row, line: Line) -> Made[Line]:
        lines[unique_key(row)] = line
        return Made(line, "shown")

    outcome = run_rows(rows, lambda row: row, look, finish)
    lines |= {unique_key(row): failed_line(row, row.extra["error"]) for row in outcome.failed}
    write_index([lines[key] for row in rows if (key := unique_key(row)) in lines], index)
    write_lists(out, [], outcome.failed, rows)
    return Group(index, outcome.failed, outcome.left)
