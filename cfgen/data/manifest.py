"""Manifests: CSV or TSV tables of scans, and BIDS participants, as checked rows.

One row is one scan. All faults of a table are collected and raised together. Values of conditions
are in raw units (`conditions.py`), ids are text, paths are relative to the table.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cfgen.data.conditions import Schema, Value, number_text
from cfgen.data.volume import SUFFIXES, is_image_path, strip_suffix, write_atomically
from cfgen.errors import ManifestError, UsageError

log = logging.getLogger("cfgen")

REQUIRED = ("subject", "image")
PATHS = ("image", "mask", "labels", "posteriors")
COLUMNS = ("subject", "session", *PATHS, "split")
# What spreadsheets and BIDS write for 'unknown'.
_MISSING = {"", "n/a", "na", "nan"}
_SHOWN = 20
_PARTICIPANT = "participant_id"
_SYNONYMS = {
    "subject": ("participant_id", "subject_id", "sub", "id", "participant", "subjectid"),
    "image": ("scan", "t1", "t1w", "path", "file", "filename", "image_path", "nifti"),
}
# Older BIDS tables call sex gender.
_BIDS_NAMES = {"sex": ("sex", "gender")}
_FOLDERS_UP = 4
_DAYS_A_YEAR = 365.25
_DICOM_AGES = {"Y": 1.0, "M": 12.0, "W": _DAYS_A_YEAR / 7, "D": _DAYS_A_YEAR}


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
class _Table:
    """The cells of a table as stripped text: `lines` are (line number, column -> cell)."""

    path: Path
    columns: list[str]
    lines: list[tuple[int, dict[str, str]]]

    def column(self, name: str) -> str | None:
        """The column of this name in any case."""
        return next((c for c in self.columns if c.lower() == name.lower()), None)

    def cell(self, cells: Mapping[str, str], name: str) -> str:
        """The text of a cell, '' when it is missing."""
        text = cells.get(self.column(name) or "", "")
        return "" if text.lower() in _MISSING else text


def unique_key(row: Row) -> str:
    """'subject' or 'subject_session' for file names: letters, digits, '+', '-', '_' and '.'."""
    parts = [re.sub(r"[^A-Za-z0-9_.+-]+", "-", p).strip(".-") for p in (row.subject, row.session)]
    return "_".join(p for p in parts if p)


def read_manifest(path: Path | str, schema: Schema) -> list[Row]:
    """The rows of a CSV or TSV manifest, or of a BIDS `participants.tsv` (or its folder).

    Comma, semicolon and tab are recognised, column names in any case. Blank, n/a, NA and nan cells
    are missing. A BIDS table gives a row for every session's first T1w by name (run-1 before
    run-2); participants without one are left out with a warning. Raises ManifestError with every
    fault as 'file:line column ...'.
    """
    path = Path(path)
    if path.is_dir() and (path / "participants.tsv").exists():
        path = path / "participants.tsv"
    table = _read_table(path)
    faults: list[str] = []
    if table.column(_PARTICIPANT) and not table.column("image"):
        rows = list(_bids_rows(table, schema, faults))
    else:
        _require_columns(table)
        rows = [_row(table, line, cells, schema, faults) for line, cells in table.lines]
    faults += _name_clashes(rows)
    if faults:
        rest = len(faults) - _SHOWN
        more = [f"and {rest} more"] if rest > 0 else []
        lines = "".join(f"\n  {fault}" for fault in [*faults[:_SHOWN], *more])
        raise ManifestError(path, f"{len(faults)} fault{'s' if len(faults) > 1 else ''}{lines}")
    _say_notes(rows)
    return rows


def write_manifest(path: Path, rows: Sequence[Row]) -> None:
    """Write rows so that `read_manifest` reads the same back; tab-separated when named .tsv.

    Paths are relative to the manifest, except where only the root folder is shared. Columns without
    a value are left out. The file appears whole or not at all.
    """
    conditions = sorted({name for row in rows for name in row.values})
    extras = list(dict.fromkeys(name for row in rows for name in row.extra))
    columns = ["subject", "session", *PATHS, *conditions, "split", *extras]
    lines = [_cells(row, path.parent) for row in rows]
    columns = [c for c in columns if c in REQUIRED or any(line.get(c) for line in lines)]
    text = io.StringIO()
    delimiter = "\t" if path.suffix == ".tsv" else ","
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([line.get(c, "") for c in columns] for line in lines)
    write_atomically(path, lambda temporary: temporary.write_text(text.getvalue(), "utf-8"))


def bids_values(image: Path, schema: Schema) -> tuple[dict[str, Value], str]:
    """Conditions that stand beside one image, and the names of the files they came from.

    The JSON sidecar (PatientAge, PatientSex, or the variable's own name) comes first, for it is
    about this scan; then the `sub-*_sessions.tsv`, then a `participants.tsv` at most four folders
    up. What cannot be used without guessing is left out with a warning.
    """
    values: dict[str, Value] = {}
    files: list[str] = []
    for source, found, notes in _beside(Path(image), schema):
        for note in notes:
            log.warning("%s: %s", source, note)
        new = {name: value for name, value in found.items() if name not in values}
        for name in sorted(found.keys() - new.keys()):
            # Ages differ between visits; another sex means another subject.
            if isinstance(found[name], str) and found[name] != values[name]:
                other = ", ".join(files)
                log.warning("%s: %s %s contradicts %s", source, name, found[name], other)
        if new:
            files.append(source.name)
            values |= new
    return values, ", ".join(files)


# Tables


def _read_table(path: Path) -> _Table:
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
        rest = f", and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ManifestError(
            path,
            "; ".join(faults[:_SHOWN]) + rest,
            "a cell for each column",
            "put a cell that contains the delimiter in double quotes",
        )
    if len(lines) == 1:
        raise ManifestError(path, "has a header and no rows", "a row for each scan")
    named = [(i, c) for i, c in enumerate(columns) if c]
    return _Table(
        path, [c for _, c in named], [(n, {c: r[i] for i, c in named}) for n, r in lines[1:]]
    )


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


def _require_columns(table: _Table) -> None:
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


def _row(
    table: _Table, line: int, cells: Mapping[str, str], schema: Schema, faults: list[str]
) -> Row:
    source = f"{table.path.name}:{line}"
    paths = {name: _path(table, cells, name, source, faults) for name in PATHS}
    subject = table.cell(cells, "subject")
    if not subject:
        faults.append(f"{source} column subject: missing; expected an id")
    if not table.cell(cells, "image"):
        faults.append(f"{source} column image: missing; expected a path")
    values, problems = _values(table, cells, schema, {})
    faults += [f"{source} {problem}" for problem in problems]
    used = {*COLUMNS, *(name.lower() for name in schema.names)}
    return Row(
        subject=subject,
        session=table.cell(cells, "session"),
        image=paths["image"] or Path(),
        mask=paths["mask"],
        labels=paths["labels"],
        posteriors=paths["posteriors"],
        split=table.cell(cells, "split"),
        values=values,
        extra={name: text for name, text in cells.items() if text and name.lower() not in used},
        source=source,
    )


def _path(
    table: _Table, cells: Mapping[str, str], name: str, source: str, faults: list[str]
) -> Path | None:
    text = table.cell(cells, name)
    if not text:
        return None
    path = table.path.parent / text
    if not is_image_path(path):
        faults.append(f"{source} column {name}: '{text}'; expected one of {', '.join(SUFFIXES)}")
    elif not path.is_file():
        faults.append(f"{source} column {name}: no such file '{path}'; expected an image")
    return path


def _values(
    table: _Table, cells: Mapping[str, str], schema: Schema, names: Mapping[str, Sequence[str]]
) -> tuple[dict[str, Value], list[str]]:
    """The conditions in a line, and what is wrong with the others; `names` are other columns."""
    values: dict[str, Value] = {}
    problems = []
    for name in schema.names:
        column = next((c for c in names.get(name, (name,)) if table.column(c)), name)
        text = table.cell(cells, column)
        if not text:
            continue
        try:
            values[name] = schema.check_value(name, text, f"column {table.column(column)}")
        except UsageError as error:
            problems.append(str(error))
    return values, problems


def _say_notes(rows: Iterable[Row]) -> None:
    """Warn once of each kind: a code that cannot be read is often in every line."""
    count = Counter(note for row in rows for note in row.notes)
    first = {note: row.source for row in reversed(list(rows)) for note in row.notes}
    for note, n in count.items():
        log.warning("%s: %s%s", first[note], note, f" (and {n - 1} more rows)" if n > 1 else "")


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
    own, start = path.absolute(), folder.absolute()
    if ".." in own.parts or not own.is_relative_to(start):
        # '..' climbs the real folders, not the links to them.
        own, start = own.parent.resolve() / own.name, folder.resolve()
    if own.parts[:2] != start.parts[:2]:
        return str(own)
    return Path(os.path.relpath(own, start)).as_posix()


# BIDS


def _bids_rows(table: _Table, schema: Schema, faults: list[str]) -> Iterator[Row]:
    root = table.path.parent
    units = _Descriptions(table.path)
    without, found = [], False
    used = {_PARTICIPANT, *(c for n in schema.names for c in _BIDS_NAMES.get(n, (n,)))}
    for line, cells in table.lines:
        source = f"{table.path.name}:{line}"
        subject = table.cell(cells, _PARTICIPANT)
        if not subject:
            faults.append(f"{source} column {_PARTICIPANT}: missing; expected sub-...")
            continue
        folder = root / (subject if subject.startswith("sub-") else f"sub-{subject}")
        values, problems = units.values(table, cells, schema)
        extra = {name: text for name, text in cells.items() if text and name.lower() not in used}
        scans = list(_first_t1w(folder))
        if not scans:
            without.append(subject)
        for session, image, others in scans:
            found = True
            own, more = _session_values(folder, session, schema)
            notes = [p for p in problems if not any(p.startswith(f"{n}:") for n in own)] + more
            if others:
                notes.append(f"{image.name} taken, not {', '.join(others)}")
            yield Row(
                subject=subject,
                session=session,
                image=image,
                values=values | own,
                extra={k: v for k, v in extra.items() if k.lower() not in COLUMNS},
                split=table.cell(cells, "split"),
                source=source,
                notes=tuple(notes),
            )
    if not found and not faults:
        raise ManifestError(
            table.path,
            "no participant has a T1w image",
            "sub-*/[ses-*/]anat/*_T1w.nii[.gz] beside the table, or a column 'image'",
        )
    if without:
        shown = ", ".join(without[:_SHOWN])
        log.warning("%s: %d without a T1w left out: %s", table.path.name, len(without), shown)


def _first_t1w(folder: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """(session or '', the first T1w by name, the names of the others) for every session."""
    for place in [folder, *sorted(folder.glob("ses-*"), key=_natural)]:
        images = [p for p in (place / "anat").glob("*_T1w.nii*") if is_image_path(p)]
        if images:
            first, *others = sorted(images, key=_natural)
            yield "" if place == folder else place.name, first, [p.name for p in others]


def _natural(path: Path) -> list[Any]:
    # Plain names before longer ones, run-2 before run-10.
    parts = re.split(r"([0-9]+)", strip_suffix(path).removesuffix("_T1w"))
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in parts]


def _session_values(
    folder: Path, session: str, schema: Schema
) -> tuple[dict[str, Value], list[str]]:
    path = folder / f"{folder.name}_sessions.tsv"
    if not session or not path.exists():
        return {}, []
    return _line_values(path, "session_id", session, "ses-", schema)


def _line_values(
    path: Path, column: str, wanted: str, prefix: str, schema: Schema
) -> tuple[dict[str, Value], list[str]]:
    """The conditions of the one line whose `column` says `wanted`, with or without `prefix`."""
    try:
        table = _read_table(path)
    except ManifestError as error:
        return {}, [str(error)]
    key = wanted.removeprefix(prefix)
    lines = [c for _, c in table.lines if table.cell(c, column).removeprefix(prefix) == key]
    if len(lines) > 1:
        return {}, [f"{path.name} has {len(lines)} lines for {wanted}: not used"]
    return _Descriptions(path).values(table, lines[0], schema) if lines else ({}, [])


class _Descriptions:
    """What the JSON file beside a BIDS table says of its columns: units and level codes."""

    def __init__(self, path: Path) -> None:
        self.columns = {k.lower(): v for k, v in _read_json(path.with_suffix(".json")).items()}

    def values(
        self, table: _Table, cells: Mapping[str, str], schema: Schema
    ) -> tuple[dict[str, Value], list[str]]:
        """The conditions in a line, and why others are unknown: nothing is guessed."""
        decoded = {name: self._decode(name, text) for name, text in cells.items()}
        values, problems = _values(table, decoded, schema, _BIDS_NAMES)
        for name in list(values):
            unit = str(self._of(name).get("Units", schema.variable(name).unit))
            expected = schema.variable(name).unit
            if expected and _unit(unit) != _unit(expected):
                del values[name]
                problems.append(f"column {name}: unit '{unit}'; expected {expected}")
        return values, [f"{p.removeprefix('column ')}; taken as unknown" for p in problems]

    def _of(self, column: str) -> Mapping[str, Any]:
        found = self.columns.get(column.lower())
        return found if isinstance(found, dict) else {}

    def _decode(self, column: str, text: str) -> str:
        """'1' -> 'male' where the description has Levels {'1': 'male'}."""
        levels = self._of(column).get("Levels")
        level = levels.get(text) if isinstance(levels, dict) else None
        if isinstance(level, dict):  # Levels may carry a Description and a TermURL.
            level = level.get("Description")
        # Only codes are looked up: {'M': 'male participant'} must not undo an M.
        return level if isinstance(level, str) and text.isdecimal() else text


def _beside(image: Path, schema: Schema) -> Iterator[tuple[Path, dict[str, Value], list[str]]]:
    """(file, values, notes) of every source for an image, the closest first."""
    sidecar = image.with_name(strip_suffix(image) + ".json")
    yield sidecar, *_sidecar_values(sidecar, schema)
    image = image.absolute()
    subject = _entity("sub", image)
    if not subject:
        return
    session = _entity("ses", image)
    for folder in list(image.parents)[:_FOLDERS_UP]:
        sessions = folder / f"{subject}_sessions.tsv"
        if session and sessions.exists():
            yield sessions, *_line_values(sessions, "session_id", session, "ses-", schema)
        participants = folder / "participants.tsv"
        if participants.exists():
            yield participants, *_line_values(participants, _PARTICIPANT, subject, "sub-", schema)
            return


def _entity(name: str, image: Path) -> str:
    """'sub-01' from the file's name, or else from its folders; '' when there is none."""
    pattern = re.compile(rf"(?:^|_)({name}-[0-9A-Za-z+]+)(?=[_.]|$)")
    for part in [image.name, *(p.name for p in image.parents)][: _FOLDERS_UP + 1]:
        match = pattern.search(part)
        if match:
            return match[1]
    return ""


def _sidecar_values(path: Path, schema: Schema) -> tuple[dict[str, Value], list[str]]:
    data = {k.lower(): v for k, v in _read_json(path).items()}
    values: dict[str, Value] = {}
    notes = []
    for name in schema.names:
        keys = [k for k in (f"patient{name}".lower(), name.lower()) if data.get(k) is not None]
        if not keys or str(data[keys[0]]).strip().lower() in _MISSING:
            continue
        found = data[keys[0]]
        try:
            values[name] = schema.check_value(name, _dicom_age(name, found), name)
        except UsageError as error:
            notes.append(f"{error}; taken as unknown")
    return values, notes


def _dicom_age(name: str, found: Any) -> Any:
    """Years from a DICOM age string such as '026Y' or '018M'; other values as they are."""
    match = re.fullmatch(r"\s*([0-9]{1,3})([DWMY])\s*", found) if isinstance(found, str) else None
    if name != "age" or not match:
        return found
    return float(match[1]) / _DICOM_AGES[match[2]]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s: not used, it cannot be read (%s)", path, error)
        return {}
    return data if isinstance(data, dict) else {}


def _unit(text: str) -> str:
    plain = text.strip().lower().rstrip("s")
    return "year" if plain in ("y", "yr") else plain
