"""BIDS: participants, sessions and JSON sidecars as conditions of a scan; nothing is guessed."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cfgen.data.schema import Schema, Value
from cfgen.data.table import COLUMNS, MISSING, SHOWN, Row, Table, condition_values, read_table
from cfgen.data.volume import is_image_path, strip_suffix
from cfgen.errors import ManifestError, UsageError

log = logging.getLogger("cfgen")

PARTICIPANT = "participant_id"
# Older BIDS tables call sex gender.
_NAMES = {"sex": ("sex", "gender")}
_FOLDERS_UP = 4
_DAYS_A_YEAR = 365.25
_DICOM_AGES = {"Y": 1.0, "M": 12.0, "W": _DAYS_A_YEAR / 7, "D": _DAYS_A_YEAR}


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


def bids_rows(table: Table, schema: Schema, faults: list[str]) -> Iterator[Row]:
    root = table.path.parent
    units = _Descriptions(table.path)
    without, found = [], False
    used = {PARTICIPANT, *(c for n in schema.names for c in _NAMES.get(n, (n,)))}
    for line, cells in table.lines:
        source = f"{table.path.name}:{line}"
        subject = table.cell(cells, PARTICIPANT)
        if not subject:
            faults.append(f"{source} column {PARTICIPANT}: missing; expected sub-...")
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
        shown = ", ".join(without[:SHOWN])
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
        table = read_table(path)
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
        self, table: Table, cells: Mapping[str, str], schema: Schema
    ) -> tuple[dict[str, Value], list[str]]:
        """The conditions in a line, and why others are unknown: nothing is guessed."""
        decoded = {name: self._decode(name, text) for name, text in cells.items()}
        values, problems = condition_values(table, decoded, schema, _NAMES)
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
            yield participants, *_line_values(participants, PARTICIPANT, subject, "sub-", schema)
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
        if not keys or str(data[keys[0]]).strip().lower() in MISSING:
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
