"""The page of scans under other protocols: what each was rendered under, and what changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from cfgen import __version__
from cfgen.data.manifest import unique_key
from cfgen.data.record import read_record
from cfgen.data.schema import Value, number_text
from cfgen.data.table import Row, read_table
from cfgen.data.volume import strip_suffix, write_atomically
from cfgen.edit.protocol_record import ProtocolRecord
from cfgen.errors import CfgenError
from cfgen.report.page import percent, template


@dataclass(frozen=True)
class Line:
    """An image of the list; `changes` are of its protocol, 'te_ms 2.98 → 6'."""

    name: str
    picture: str
    origin: str
    changes: tuple[str, ...]
    asides: tuple[str, ...]
    region: str
    percent: str
    warnings: tuple[str, ...]


def write_page(folder: Path, failed: Sequence[Row]) -> Path:
    """'report.html' of all that the manifest of a folder lists, and of the rows that failed now."""
    table = read_table(folder / "manifest.csv")
    lines = []
    for _, cells in table.lines:
        image = folder / table.cell(cells, "image")
        try:
            record = read_record(ProtocolRecord, _beside(image, ".json"), "")
        except CfgenError:
            continue
        lines.append(_line(image, record))
    text = template("protocols.html").render(
        version=__version__,
        lines=lines,
        failed=[(unique_key(row), row.extra.get("error", "")) for row in failed],
    )
    path = folder / "report.html"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path


def _beside(image: Path, ending: str) -> Path:
    return image.with_name(strip_suffix(image) + ending)


def _line(image: Path, record: ProtocolRecord) -> Line:
    picture, worst = _beside(image, ".png"), record.worst
    names = [n for n in (*record.target, *record.factual) if _differ(record, n)]
    return Line(
        name=strip_suffix(image),
        picture=quote(picture.name) if picture.exists() else "",
        origin=record.protocol_source,
        changes=tuple(
            f"{n} {_said(record.factual.get(n))} → {_said(record.target.get(n))}"
            for n in dict.fromkeys(names)
        ),
        asides=(
            *(f"not rendered: {n} {_said(v)}" for n, v in record.not_rendered.items()),
            *(f"assumed: {text}" for text in record.assumed),
        ),
        region=f"{worst.structure} ({worst.side})" if worst else "",
        percent=percent(worst.percent) if worst else "",
        warnings=tuple(w.text for w in record.warnings),
    )


def _differ(record: ProtocolRecord, name: str) -> bool:
    return record.factual.get(name) != record.target.get(name)


def _said(value: Value | None) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else number_text(value)
