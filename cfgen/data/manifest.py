"""Manifests: CSV or TSV tables of scans, and BIDS participants, as checked rows.

One row is one scan. All faults of a table are collected and raised together. Values of conditions
are in raw units (`conditions.py`), ids are text, paths are relative to the table.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from cfgen.data.bids import PARTICIPANT, sidecar_notes
from cfgen.data.bids_folder import bids_rows, folder_rows
from cfgen.data.ids import visit_column
from cfgen.data.names import expand_path
from cfgen.data.readings import Reader, Reading
from cfgen.data.schema import Schema, number_text
from cfgen.data.table import COLUMNS, PATHS, Row, Table, read_table, refuse
from cfgen.data.volume import SUFFIXES, is_image_path, write_atomically
from cfgen.errors import ManifestError

log = logging.getLogger("cfgen")

REQUIRED = ("subject", "image")
_SYNONYMS = {
    "subject": ("participant_id", "subject_id", "sub", "id", "participant", "subjectid"),
    "image": ("scan", "t1", "t1w", "path", "file", "filename", "image_path", "nifti"),
}


def unique_key(row: Row) -> str:
    """'subject' or 'subject_session' for file names: letters and digits of any script, '+', '-',
    '_' and '.'; runs of other characters become one '-'."""
    parts = [
        re.sub(" +", "-", "".join(c if _in_names(c) else " " for c in text)).strip(".-")
        # Some file systems take an accent apart from its letter and others do not: one form.
        for text in (unicodedata.normalize("NFC", t) for t in (row.subject, row.session))
    ]
    return "_".join(p for p in parts if p)


def _in_names(character: str) -> bool:
    if character.isascii():
        return character.isalnum() or character in "_.+-"
    # Letters, marks (vowels of Indic scripts, say), numbers and symbols of all scripts.
    return unicodedata.category(character)[0] in "LMNS"


def read_manifest(path: Path | str, schema: Schema, *, keep_missing: bool = False) -> list[Row]:
    """The rows of a CSV or TSV manifest, or of a BIDS folder or its `participants.tsv`.

    Comma, semicolon and tab are recognised, column names in any case. Blank, n/a, NA and nan cells
    are missing. BIDS gives a row for every session's first T1w by name (run-1 before run-2);
    participants without one are left out with a warning. A JSON sidecar beside an image only warns
    here, where it contradicts the table (`bids.py`). With `keep_missing` a file that is not there
    is no fault: its row fails when its turn comes. Raises ManifestError with every fault as
    'file:line column ...'.
    """
    path = Path(path)
    if path.is_dir() and (path / "participants.tsv").exists():
        path = path / "participants.tsv"
    faults: list[str] = []
    if path.is_dir():
        rows = folder_rows(path, schema)
    else:
        table = read_table(path)
        if table.column(PARTICIPANT) and not table.column("image"):
            rows = bids_rows(table, schema, faults)
        else:
            rows = _rows(table, schema, faults)
    faults += _name_clashes(rows)
    faults += [] if keep_missing else _missing_files(rows)
    refuse(path, faults)
    rows = [replace(r, notes=(*r.notes, *sidecar_notes(r.image, r.values, schema))) for r in rows]
    _say_notes(rows)
    return rows


def write_manifest(path: Path, rows: Sequence[Row]) -> None:
    """Write rows so that `read_manifest` reads the same back; tab-separated when named .tsv.

    Paths are relative to the manifest, except where only the root folder is shared. Columns without
    a value are left out. The file appears whole or not at all.
    """
    write_lines(path, manifest_lines(rows, path.parent))


def manifest_lines(rows: Sequence[Row], folder: Path) -> list[dict[str, str]]:
    """Rows as the cells of a manifest that lies in `folder`; column -> text, '' where missing."""
    conditions = sorted({name for row in rows for name in row.values})
    extras = list(dict.fromkeys(name for row in rows for name in row.extra))
    columns = ["subject", "session", *PATHS, *conditions, "split", *extras]
    cells = [_cells(row, folder) for row in rows]
    return [{name: line.get(name, "") for name in columns} for line in cells]


def write_lines(path: Path, lines: Sequence[Mapping[str, str]]) -> None:
    """Write cells as `manifest_lines` makes them; columns without a value are left out."""
    columns = dict.fromkeys(name for line in lines for name in line)
    kept = [c for c in columns if c in REQUIRED or any(line.get(c) for line in lines)]
    text = io.StringIO()
    delimiter = "\t" if path.suffix == ".tsv" else ","
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(kept)
    writer.writerows([line.get(c, "") for c in kept] for line in lines)
    write_atomically(path, lambda temporary: temporary.write_text(text.getvalue(), "utf-8"))


def _require_columns(table: Table) -> None:
    missing = [name for name in REQUIRED if table.column(name) is None]
    if not missing:
        return
    hints = []
    for name in missing:
        lower = {c.lower(): c for c in table.columns}
        near = [lower[s] for s in _SYNONYMS[name] if s in lower]
        near += [lower[s] for s in get_close_matches(name, lower, 1)]
        if near:
            hints.append(f"rename '{near[0]}' to '{name}'?")
    raise ManifestError(
        table.path,
        f"no column {' and no column '.join(missing)}; found {', '.join(table.columns)}",
        f"the columns {' and '.join(REQUIRED)}",
        " ".join(hints),
    )


def _rows(table: Table, schema: Schema, faults: list[str]) -> list[Row]:
    _require_columns(table)
    reader = Reader(table, schema)
    for doubt in reader.doubts:
        log.warning("%s: %s", table.path.name, doubt)
    subjects = [table.cell(cells, "subject") for _, cells in table.lines]
    session = "session"
    if not table.column(session) and len(set(subjects)) < len(subjects):
        session = visit_column(table, "subject")
    return [_row(table, i, session, reader, faults) for i in range(len(table.lines))]


def _row(table: Table, place: int, session: str, reader: Reader, faults: list[str]) -> Row:
    line, cells = table.lines[place]
    source = f"{table.path.name}:{line}"
    paths = {name: _path(table, cells, name, source, faults) for name in PATHS}
    subject = table.cell(cells, "subject")
    if not subject:
        faults.append(f"{source} column subject: missing; expected an id")
    if not table.cell(cells, "image"):
        faults.append(f"{source} column image: missing; expected a path")
    reading = reader.read(cells)
    # A column of just this name must be right; others may only look like it.
    problems = {name: p for name, p in reading.problems.items() if table.cell(cells, name)}
    faults += [f"{source} {problem}" for problem in problems.values()]
    doubts = {name: p for name, p in reading.problems.items() if name not in problems}
    used = {*COLUMNS, session.lower(), *(name.lower() for name in reader.names)}
    return Row(
        subject=subject,
        session=table.cell(cells, session),
        image=paths["image"] or Path(),
        mask=paths["mask"],
        labels=paths["labels"],
        posteriors=paths["posteriors"],
        split=table.cell(cells, "split"),
        values=reading.values,
        extra={name: text for name, text in cells.items() if text and name.lower() not in used},
        source=source,
        notes=tuple(Reading({}, doubts, reading.notes).unknown()),
    )


def _path(
    table: Table, cells: Mapping[str, str], name: str, source: str, faults: list[str]
) -> Path | None:
    text = table.cell(cells, name)
    if not text:
        return None
    path = table.path.parent / text
    if not os.path.exists(path):
        expanded, problem = expand_path(text)
        if problem:
            faults.append(f"{source} column {name}: '{text}': {problem}")
            return None
        path = table.path.parent / expanded
    if not is_image_path(path):
        faults.append(f"{source} column {name}: '{text}'; expected one of {', '.join(SUFFIXES)}")
    return path


def _missing_files(rows: Iterable[Row]) -> list[str]:
    faults = []
    for row in rows:
        for name in PATHS:
            path = getattr(row, name)
            # Path.is_file raises for a name that is too long.
            if path is not None and is_image_path(path) and not os.path.isfile(path):
                found = f"no such file '{path}'; expected an image"
                faults.append(f"{row.source} column {name}: {found}")
    return faults


def _say_notes(rows: Iterable[Row]) -> None:
    """Warn once of each kind: a code that cannot be read is often in every line."""
    first: dict[str, tuple[Row, str]] = {}
    count: Counter[str] = Counter()
    for row in rows:
        for note in row.notes:
            # Of a kind are notes that differ in a number alone, not in that of a file's name.
            kind = re.sub(r"(?<![\w.-])[0-9.]+(?![\w-])", "", note)
            first.setdefault(kind, (row, note))
            count[kind] += 1
    for kind, (row, note) in first.items():
        more = f" (and {count[kind] - 1} more rows)" if count[kind] > 1 else ""
        log.warning("%s: %s%s", row.source, note, more)


def _name_clashes(rows: Iterable[Row]) -> list[str]:
    """Rows whose outputs would have one name, on file systems that ignore case too."""
    faults, first = [], {}
    for row in rows:
        if not row.subject:
            continue
        key = unique_key(row).lower()
        if not key:
            faults.append(f"{row.source} column subject: '{row.subject}' has no letter or digit")
        elif key not in first:
            first[key] = row
        else:
            other = first[key]
            session = f" session '{row.session}'" if row.session else ""
            same = (row.subject, row.session) == (other.subject, other.session)
            faults.append(
                f"{row.source} column subject: '{row.subject}'{session} "
                + ("is also" if same else "would have the same file names as")
                + f" {other.source}; expected each scan once, name visits in a session column"
            )
    return faults


def _cells(row: Row, folder: Path) -> dict[str, str]:
    paths = {name: getattr(row, name) for name in PATHS}
    return {
        **row.extra,
        "subject": row.subject,
        "session": row.session,
        **{name: _relative(path, folder) for name, path in paths.items() if path is not None},
        "split": row.split,
        **{n: v if isinstance(v, str) else _exact(v) for n, v in row.values.items()},
    }


def _exact(x: float) -> str:
    short = number_text(x)
    return short if float(short) == x else repr(float(x))


def _relative(path: Path, folder: Path) -> str:
    target, start = path.absolute(), folder.absolute()
    if ".." in target.parts or not target.is_relative_to(start):
        # '..' climbs the real folders, not the links to them.
        target, start = target.parent.resolve() / target.name, folder.resolve()
    if target.parts[:2] != start.parts[:2]:
        return str(target)
    return Path(os.path.relpath(target, start)).as_posix()
