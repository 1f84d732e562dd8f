"""CSV and TSV tables as text cells, and the rows that are read from them.

Values of conditions are in raw units (`conditions.py`), ids are text.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cfgen.data.schema import Value
from cfgen.data.volume import write_atomically
from cfgen.errors import ManifestError

PATHS = ("image", "mask", "labels", "posteriors")
COLUMNS = ("subject", "session", *PATHS, "split")
# What spreadsheets and BIDS write for 'unknown'.
MISSING = {"", "n/a", "na", "nan"}
# Faults of a table that are listed before the rest is counted.
SHOWN = 20


@dataclass(frozen=True)
class Row:
    """One scan.

    `values` are the conditions that the schema knows and the table gives, `extra` the other columns
    as text, `source` is 'file:line', `notes` says what was there but could not be used.
    """

    subject: str
    image: Path
    session: str = ""
    mask: Path | None = None
    labels: Path | None = None
    posteriors: Path | None = None
    split: str = ""
    values: dict[str, Value] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    source: str = field(default="", compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Table:
    """The cells of a table as stripped text: `lines` are (line number, column -> cell)."""

    path: Path
    columns: list[str]
    lines: list[tuple[int, dict[str, str]]]

    def column(self, name: str) -> str | None:
        """The column of this name in any case."""
        return next((c for c in self.columns if c.lower() == name.lower()), None)

    @property
    def filled(self) -> list[str]:
        """The columns that have a value in any line."""
        return [c for c in self.columns if any(self.cell(cells, c) for _, cells in self.lines)]

    def cell(self, cells: Mapping[str, str], name: str) -> str:
        """The text of a cell, '' when it is missing."""
        text = cells.get(self.column(name) or "", "")
        return "" if text.lower() in MISSING else text


def read_table(path: Path) -> Table:
    text = _read_text(path)
    header = text.lstrip("\n").partition("\n")[0]
    # Ties go to the tab in a .tsv, to the comma elsewhere.
    order = "\t,;" if path.suffix == ".tsv" else ",;\t"
    delimiter = max(order, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            cells = [c.strip() for c in cells]
            if any(cells):
                lines.append((reader.line_num, cells))
    except csv.Error as error:
        raise ManifestError(
            f"{path}:{reader.line_num}", f"no table ({error})", "balanced quotes"
        ) from error
    if not lines:
        raise ManifestError(path, "is empty", "a header line and a row for each scan")
    columns = lines[0][1]
    while columns and not columns[-1]:
        columns.pop()
    lower = [c.lower() for c in columns if c]
    double = sorted({c for c in lower if lower.count(c) > 1})
    if double:
        raise ManifestError(f"{path}:{lines[0][0]}", f"column {', '.join(double)} twice", "it once")
    faults = [
        f"{path.name}:{n} has {len(cells)} cells, the header has {len(columns)} columns"
        for n, cells in lines[1:]
        if len(cells) < len(columns) or any(cells[len(columns) :])
    ]
    if faults:
        rest = f", and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise ManifestError(
            path,
            "; ".join(faults[:SHOWN]) + rest,
            "a cell for each column",
            "put a cell that contains the delimiter in double quotes",
        )
    if len(lines) == 1:
        raise ManifestError(path, "has a header and no rows", "a row for each scan")
    named = [(i, c) for i, c in enumerate(columns) if c]
    return Table(
        path, [c for _, c in named], [(n, {c: r[i] for i, c in named}) for n, r in lines[1:]]
    )


def refuse(path: Path, faults: Sequence[str]) -> None:
    """Raises ManifestError with the faults, the first twenty a line each, where there are any."""
    if faults:
        rest = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        lines = "".join(f"\n  {fault}" for fault in [*faults[:SHOWN], *rest])
        raise ManifestError(path, f"{len(faults)} fault{'s' if len(faults) > 1 else ''}{lines}")


def write_table(path: Path, lines: Sequence[Mapping[str, str]]) -> None:
    """A CSV, tab-separated when named .tsv, of lines in the columns that any of them has; nothing
    where there is no line."""
    if not lines:
        return
    columns = list(dict.fromkeys(name for line in lines for name in line))
    delimiter = "\t" if path.suffix == ".tsv" else ","

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, delimiter=delimiter, lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)

    write_atomically(path, write)


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ManifestError(
            path, f"cannot be read ({error.strerror})", "a CSV or TSV file"
        ) from error
    if raw.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise ManifestError(path, "is a spreadsheet", "text", "save it as CSV (UTF-8)")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ManifestError(path, "is UTF-16 text", "UTF-8", "save it as CSV (UTF-8)")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ManifestError(
            f"{path}:{line}",
            f"byte 0x{raw[error.start]:02x} is no UTF-8 text",
            "UTF-8",
            "save it as CSV (UTF-8), or convert it: iconv -f latin1 -t utf-8",
        ) from error
    if "\0" in text:
        raise ManifestError(path, "is no text file", "a CSV or TSV file")
    return text.replace("\r\n", "\n").replace("\r", "\n")
