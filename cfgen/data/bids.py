"""BIDS: participants, sessions and JSON sidecars as conditions of a scan; nothing is guessed.

One order holds for a scan alone and for a table of them: the line of a `sub-*_sessions.tsv`, then
that of `participants.tsv`, then the scan's JSON sidecar. Tables are kept by people; ages in headers
are rounded, and removed or replaced by anonymisation.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cfgen.data.conditions import Schema, Value, number_text
from cfgen.data.descriptions import Descriptions, read_json
from cfgen.data.ids import folders_in, lines_of_visits, match_ids, visit_column
from cfgen.data.readings import Reader, Reading
from cfgen.data.table import Table, read_table
from cfgen.data.volume import strip_suffix
from cfgen.errors import ManifestError

log = logging.getLogger("cfgen")

PARTICIPANT = "participant_id"
_FOLDERS_UP = 4
# A header's age is in whole years, and a table's may be that of the last birthday.
_YEARS_APART = 1.0
# What holds for a visit that the table has no line of.
_LASTING = ("sex",)


def bids_values(image: Path, schema: Schema) -> tuple[dict[str, Value], str]:
    """Conditions that stand beside one image, and the names of the files they came from.

    The `sub-*_sessions.tsv` comes first, then a `participants.tsv` at most four folders up, then
    the JSON sidecar (PatientAge, PatientSex, or the variable's own name). What cannot be used
    without guessing is left out with a warning, and so is what contradicts an earlier file.
    """
    values: dict[str, Value] = {}
    files: list[str] = []
    for source, reading in _beside(Path(image), schema):
        for note in without_known(reading, values).unknown():
            log.warning("%s: %s", source, note)
        new = {name: value for name, value in reading.values.items() if name not in values}
        header = source.suffix == ".json"
        for text in _contradictions(values, reading.values, schema, header):
            log.warning("%s: %s %s, which is taken", source, text, ", ".join(files))
        if new:
            files.append(source.name)
            values |= new
    return values, ", ".join(files)


def sidecar_notes(image: Path, values: Mapping[str, Value], schema: Schema) -> list[str]:
    """Where the sidecar of an image contradicts what a table says of it."""
    reading = _sidecar_values(_sidecar(image), schema)
    texts = _contradictions(values, reading.values, schema, True)
    return [f"the scan's JSON sidecar: {text} the table, which is taken" for text in texts]


def session_values(folder: Path, session: str, schema: Schema) -> Reading:
    """What the `sub-*_sessions.tsv` of a subject's folder says of one visit."""
    path = folder / f"{folder.name}_sessions.tsv"
    if not session or not path.exists():
        return Reading()
    try:
        table = read_table(path)
    except ManifestError as error:
        return Reading(notes=[str(error)])
    column = visit_column(table, "") or "session_id"
    lines, doubts = _lines_of(table, column, folder / session)
    # A description in the root holds for the tables of all subjects.
    described = Descriptions(path.with_suffix(".json"), folder.parent / "sessions.json")
    return _with_notes(_one_line(Reader(table, schema, described), table, lines, session), doubts)


def visit_values(reading: Reading | None, all_lines: Sequence[Reading], visit: str) -> Reading:
    """What a subject's lines say of one visit: its own line, or None where it has none, and what
    does not change between visits from the others."""
    choices = {n: {r.values[n] for r in all_lines if n in r.values} for n in _LASTING}
    values = {name: options.pop() for name, options in choices.items() if len(options) == 1}
    if reading is None:
        where = visit or "the scan outside the ses-* folders"
        note = f"no line for {where}: of the subject's others, {_LASTING[0]} alone is taken"
        return Reading(values, {}, [note])
    missing = {n: v for n, v in values.items() if n not in reading.problems}
    return Reading(missing | reading.values, reading.problems, reading.notes)


def without_known(reading: Reading, known: Mapping[str, Value]) -> Reading:
    """The reading less its problems with what a better source has said."""
    problems = {name: problem for name, problem in reading.problems.items() if name not in known}
    return Reading(reading.values, problems, reading.notes)


def _with_notes(reading: Reading, notes: Sequence[str]) -> Reading:
    return Reading(reading.values, reading.problems, [*reading.notes, *notes])


def _beside(image: Path, schema: Schema) -> Iterator[tuple[Path, Reading]]:
    """Every source for an image with what it says, the first to be believed first."""
    sidecar = _sidecar(image)
    subject = _entity("sub", image.absolute())
    if subject:
        yield from _tables(image.absolute(), subject, schema)
    yield sidecar, _sidecar_values(sidecar, schema)


def _tables(image: Path, subject: str, schema: Schema) -> Iterator[tuple[Path, Reading]]:
    session = _entity("ses", image)
    for folder in list(image.parents)[:_FOLDERS_UP]:
        sessions = folder / f"{subject}_sessions.tsv"
        if session and sessions.exists():
            yield sessions, session_values(folder, session, schema)
        participants = folder / "participants.tsv"
        if participants.exists():
            yield participants, _participant_values(participants, subject, session, schema)
            return


def _participant_values(path: Path, subject: str, session: str, schema: Schema) -> Reading:
    try:
        table = read_table(path)
    except ManifestError as error:
        return Reading(notes=[str(error)])
    reader = Reader(table, schema, Descriptions(path.with_suffix(".json")))
    subject_lines, notes = _lines_of(table, PARTICIPANT, path.parent / subject)
    notes += reader.doubts if subject_lines else []
    lines, visits = subject_lines, visit_column(table, PARTICIPANT)
    if visits and subject_lines:
        labels = sorted({session, *folders_in(path.parent / subject, "ses")})
        lines_by_visit, _, doubts = lines_of_visits(table, subject_lines, visits, labels)
        lines, notes = lines_by_visit[session], notes + doubts
        if len(lines) < 2:
            readings = {i: reader.read(table.lines[i][1]) for i in subject_lines}
            reading = readings[lines[0]] if lines else None
            return _with_notes(visit_values(reading, list(readings.values()), session), notes)
    return _with_notes(_one_line(reader, table, lines, subject), notes)


def _one_line(reader: Reader, table: Table, lines: Sequence[int], wanted: str) -> Reading:
    if len(lines) > 1:
        return Reading(notes=[f"{table.path.name} has {len(lines)} lines for {wanted}: not used"])
    return reader.read(table.lines[lines[0]][1]) if lines else Reading()


def _lines_of(table: Table, column: str, folder: Path) -> tuple[list[int], list[str]]:
    """The lines whose id means a folder 'sub-*' or 'ses-*', and why others are not used."""
    ids = [table.cell(cells, column) for _, cells in table.lines]
    prefix, _, label = folder.name.partition("-")
    beside = {folder.name}
    if label not in (name.removeprefix(f"{prefix}-") for name in ids):
        # Only another spelling needs the folders that it could mean as well.
        beside.update(folders_in(folder.parent, prefix))
    matches = match_ids(filter(None, ids), beside)
    doubts = dict.fromkeys(d for d in matches.doubts.values() if f"'{folder.name}'" in d)
    lines = [i for i, name in enumerate(ids) if matches.folders.get(name) == folder.name]
    return lines, [f"{doubt}: not used" for doubt in doubts]


def _entity(name: str, image: Path) -> str:
    """'sub-01' from the file's name, or else from its folders; '' when there is none."""
    pattern = re.compile(rf"(?:^|_)({name}-[0-9A-Za-z+]+)(?=[_.]|$)")
    for part in [image.name, *(p.name for p in image.parents)][: _FOLDERS_UP + 1]:
        match = pattern.search(part)
        if match:
            return match[1]
    return ""


def _sidecar(image: Path) -> Path:
    return image.with_name(strip_suffix(image) + ".json")


def _sidecar_values(path: Path, schema: Schema) -> Reading:
    cells = {
        key: str(value).strip()
        for key, value in read_json(path).items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)
    }
    table = Table(path, list(cells), [(0, cells)])
    return Reader(table, schema, headers=True).read(cells)


def _contradictions(
    known: Mapping[str, Value], values: Mapping[str, Value], schema: Schema, header: bool
) -> list[str]:
    """'age 25 contradicts 62.3 of': another sex is another subject; ages differ between visits, so
    that only a header's is compared, by more than a year."""
    contradictions = []
    for name in sorted(values.keys() & known.keys()):
        value, known_value = values[name], known[name]
        if isinstance(value, str) or isinstance(known_value, str):
            differ = value != known_value
        else:
            years = schema.variable(name).unit == "years"
            differ = header and years and abs(value - known_value) > _YEARS_APART
        if differ:
            pair = (value, known_value)
            texts = [v if isinstance(v, str) else number_text(round(v, 2)) for v in pair]
            contradictions.append(f"{name} {texts[0]} contradicts {texts[1]} of")
    return contradictions
