"""Rows of a BIDS folder: the first T1w of every visit, with its participants.tsv or without."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfgen.data.bids import PARTICIPANT, session_values, visit_values, without_known
from cfgen.data.descriptions import Descriptions
from cfgen.data.ids import Matches, folders_in, lines_of_visits, match_ids, visit_column
from cfgen.data.readings import Reader, Reading
from cfgen.data.schema import Schema
from cfgen.data.table import COLUMNS, SHOWN, Row, Table
from cfgen.data.volume import is_image_path, strip_suffix
from cfgen.errors import ManifestError

log = logging.getLogger("cfgen")

_LAYOUT = "sub-*/[ses-*/]anat/*_T1w.nii[.gz]"


@dataclass(frozen=True)
class _Scan:
    """The first T1w of a visit ('' outside a ses-* folder), and the names of the others."""

    folder: Path
    session: str
    image: Path
    others: tuple[str, ...]

    def notes(self) -> list[str]:
        return [f"{self.image.name} taken, not {', '.join(self.others)}"] if self.others else []


def bids_rows(table: Table, schema: Schema, faults: list[str]) -> list[Row]:
    """The rows of the participants of a table, whose lines are subjects or visits.

    Participants and visits without a T1w are left out with a warning. Faults are appended. Raises
    ManifestError when there is no scan at all.
    """
    name = table.path.name
    reader = Reader(table, schema, Descriptions(table.path.with_suffix(".json")))
    lines = _lines_of_subjects(table, faults)
    folders = folders_in(table.path.parent, "sub")
    matches = match_ids(lines, folders)
    visits = visit_column(table, PARTICIPANT)
    rows: list[Row] = []
    missing: list[str] = []
    for subject, places in lines.items():
        where = f"{name}:{table.lines[places[0]][0]} column"
        if subject in matches.doubts:
            faults.append(f"{where} {PARTICIPANT}: {matches.doubts[subject]}; expected one")
            continue
        folder = matches.folders.get(subject)
        scans = list(_first_t1w(table.path.parent / folder)) if folder else []
        places_by_visit = {scan.session: places for scan in scans}
        if not scans:
            missing.append(subject)
        elif visits:
            sessions = list(places_by_visit)
            places_by_visit, absent, doubts = lines_of_visits(table, places, visits, sessions)
            missing += [f"{subject} {session}" for session in absent]
            faults += [f"{where} {visits}: {doubt}; expected one" for doubt in doubts]
        readings = {i: reader.read(table.lines[i][1]) for i in places}
        for scan in scans:
            for i in places_by_visit[scan.session] or places[:1]:
                reading = readings[i] if places_by_visit[scan.session] else None
                values = visit_values(reading, list(readings.values()), scan.session)
                rows.append(_row(table, i, subject, scan, values, schema))
    if not rows and not faults:
        raise _no_scan(table.path, list(lines), folders)
    _say(name, reader.doubts, matches, missing)
    return rows


def folder_rows(root: Path, schema: Schema) -> list[Row]:
    """The rows of a BIDS folder without a table. Raises ManifestError when it holds no scan."""
    rows = []
    for subject in folders_in(root, "sub"):
        for scan in _first_t1w(root / subject):
            reading = session_values(scan.folder, scan.session, schema)
            rows.append(
                Row(
                    subject=subject,
                    session=scan.session,
                    image=scan.image,
                    values=reading.values,
                    source=str(scan.image.relative_to(root)),
                    notes=tuple(reading.unknown() + scan.notes()),
                )
            )
    if not rows:
        raise ManifestError(
            root, "is a folder without scans in the BIDS layout", f"participants.tsv or {_LAYOUT}"
        )
    return rows


def _lines_of_subjects(table: Table, faults: list[str]) -> dict[str, list[int]]:
    lines: dict[str, list[int]] = {}
    for i, (line, cells) in enumerate(table.lines):
        subject = table.cell(cells, PARTICIPANT)
        if subject:
            lines.setdefault(subject, []).append(i)
        else:
            where = f"{table.path.name}:{line} column {PARTICIPANT}"
            faults.append(f"{where}: missing; expected sub-...")
    return lines


def _row(
    table: Table, place: int, subject: str, scan: _Scan, reading: Reading, schema: Schema
) -> Row:
    line, cells = table.lines[place]
    visit = session_values(scan.folder, scan.session, schema)
    notes = without_known(reading, visit.values).unknown() + visit.unknown()
    return Row(
        subject=subject,
        session=scan.session,
        image=scan.image,
        values=reading.values | visit.values,
        extra=_extra(cells, schema),
        split=table.cell(cells, "split"),
        source=f"{table.path.name}:{line}",
        notes=tuple(notes + scan.notes()),
    )


def _extra(cells: Mapping[str, str], schema: Schema) -> dict[str, str]:
    used = {PARTICIPANT, "gender", *(name.lower() for name in schema.names), *COLUMNS}
    return {name: text for name, text in cells.items() if text and name.lower() not in used}


def _no_scan(path: Path, ids: Sequence[str], folders: Sequence[str]) -> ManifestError:
    spelt = f"; ids are like '{ids[0]}', folders like '{folders[0]}'" if ids and folders else ""
    return ManifestError(
        path,
        f"no participant has a T1w image{spelt}",
        f"{_LAYOUT} beside the table, or a column 'image'",
    )


def _say(name: str, doubts: Sequence[str], matches: Matches, missing: Sequence[str]) -> None:
    for doubt in doubts:
        log.warning("%s: %s", name, doubt)
    if matches.respelt:
        pairs = ", ".join(f"{i} is {f}" for i, f in list(matches.respelt.items())[:SHOWN])
        log.warning("%s: %d ids differ from their folders: %s", name, len(matches.respelt), pairs)
    if missing:
        shown = ", ".join(missing[:SHOWN])
        log.warning("%s: %d without a T1w left out: %s", name, len(missing), shown)


def _first_t1w(folder: Path) -> Iterator[_Scan]:
    """The first T1w by name of every visit."""
    for place in [folder, *sorted(folder.glob("ses-*"), key=_natural)]:
        images = [p for p in (place / "anat").glob("*_T1w.nii*") if is_image_path(p)]
        if images:
            first, *others = sorted(images, key=_natural)
            session = "" if place == folder else place.name
            yield _Scan(folder, session, first, tuple(p.name for p in others))


def _natural(path: Path) -> list[Any]:
    # Plain names before longer ones, run-2 before run-10.
    parts = re.split(r"([0-9]+)", strip_suffix(path).removesuffix("_T1w"))
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in parts]
