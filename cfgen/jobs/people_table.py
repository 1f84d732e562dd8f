"""People and the volumes of their brains from a table, in one of two layouts.

Wide: a line a person, a column a structure (mm3), in cfgen's, DLMUSE's or FreeSurfer's names
(`data/volume_columns.py`). Long: what `cfgen segment --volumes` writes, a
line a structure and side; sides are added up, and summed probabilities come before counts.
Conditions (age, sex, ...) are columns of the table, or of a manifest beside it, matched by subject
and session.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from cfgen.data.columns import columns_of
from cfgen.data.parcellation import NAMES
from cfgen.data.readings import Reader
from cfgen.data.schema import NUMBER, VOLUME_UNIT, Schema, Value, Values
from cfgen.data.table import COLUMNS, SHOWN, Table, read_table
from cfgen.data.volume_columns import HEAD, recognise
from cfgen.errors import ManifestError
from cfgen.measure.volumes import RegionVolume, read_region_volume, sums

log = logging.getLogger("cfgen")

_SUBJECT = ("subject", "participant_id")
_SESSION = ("session", "session_id")
_LONG = ("structure", "side", "volume_mm3", "soft_volume_mm3")
# What a table of answers has besides: it can be asked again.
ANSWERS = ("world", "rates", "in_support", "outside_support")
ENDINGS = ("_factual", "_low95", "_high95", "_centile")
NOISE = "noise_"
# Columns that a message names before it counts the rest: DLMUSE writes 260.
_NAMED = 12
# Volumes that cfgen measures, whether or not a model has them.
_MEASURED = (*NAMES, "brain", "cortex", "tiv")


@dataclass(frozen=True)
class Person:
    """One line of a wide table; `values` are mm3 for volumes, `source` is 'file:line'."""

    subject: str
    session: str
    values: dict[str, Value]
    source: str


def read_people(
    path: Path,
    schema: Schema,
    given: Values,
    manifest: Path | None = None,
    missing: Collection[str] = (),
    free: Collection[str] = (),
) -> list[Person]:
    """Everybody in a table, with a value for every variable of the schema.

    `given` is taken where the table says nothing. Variables of `missing` may have no value, or a
    level that the schema does not know, in some lines or in all; those of `free` only in all.
    Raises ManifestError, which lists
    every fault as 'file:line column ...': a region or condition that is not there, a cell without a
    value, or one that is no number, of no known level, or in another unit.
    """
    table = read_table(path)
    if table.column("structure"):
        table = _wide(table)
    table = _renamed(table)
    faults: list[str] = []
    if manifest is not None:
        table = _joined(table, read_table(manifest), faults)
    missing = {*missing, *_unsaid(table, schema, given, free)}
    needed = Schema(tuple(v for v in schema.variables if v.name not in missing))
    _refuse_absent(table, needed, given)
    _warn_of_unknown(table, schema)
    reader = Reader(table, schema)
    people = []
    for line, cells in table.lines:
        source = f"{path.name}:{line}"
        subject = _first(table, cells, _SUBJECT)
        if not subject:
            faults.append(f"{source} column subject: missing; expected an id")
        reading = reader.read(cells)
        values = dict(given) | reading.values
        faults += [f"{source} {p}" for name, p in reading.problems.items() if name in needed.names]
        faults += [
            f"{source} column {name}: missing; expected {schema.variable(name).expected}"
            for name in needed.missing(values)
            if name not in reading.problems
        ]
        people.append(Person(subject, _first(table, cells, _SESSION), values, source))
    _raise(path, faults)
    return people


def _raise(path: Path, faults: Sequence[str]) -> None:
    if faults:
        rest = len(faults) - SHOWN
        more = [f"and {rest} more"] if rest > 0 else []
        lines = "".join(f"\n  {fault}" for fault in [*faults[:SHOWN], *more])
        raise ManifestError(path, f"{len(faults)} fault{'s' if len(faults) > 1 else ''}{lines}")


def _first(table: Table, cells: Mapping[str, str], names: Iterable[str]) -> str:
    return next((text for name in names if (text := table.cell(cells, name))), "")


def _wide(table: Table) -> Table:
    """A table of `segment --volumes` as a line a person; other columns must be the same in all of
    a person's lines. Raises ManifestError."""
    absent = [name for name in ("side", "volume_mm3") if table.column(name) is None]
    if absent:
        raise ManifestError(
            table.path,
            f"has a column structure and no {' and no '.join(absent)}",
            "a table of 'cfgen segment --volumes', or a column a structure",
        )
    others = [c for c in table.columns if c.lower() not in _LONG]
    first: dict[tuple[str, str], int] = {}
    told: dict[tuple[str, str], dict[str, str]] = {}
    volumes: dict[tuple[str, str], list[RegionVolume]] = {}
    faults = []
    for line, cells in table.lines:
        person = (_first(table, cells, _SUBJECT), _first(table, cells, _SESSION))
        first.setdefault(person, line)
        known = told.setdefault(person, {})
        for column in others:
            text = table.cell(cells, column)
            if text and known.setdefault(column, text) != text:
                faults.append(
                    f"{table.path.name}:{line} column {column}: '{text}'; "
                    f"'{known[column]}' in another line of {person[0]}"
                )
        volume = read_region_volume(table, line, cells)
        if any(
            (v.structure, v.side) == (volume.structure, volume.side)
            for v in volumes.get(person, [])
        ):
            faults.append(f"{table.path.name}:{line}: {volume.structure} of {person[0]} twice")
        volumes.setdefault(person, []).append(volume)
    _raise(table.path, faults)
    lines, names = [], dict.fromkeys(others)
    for person, line in first.items():
        both = {name: mm3 for (name, side), mm3 in sums(volumes[person]).items() if side == "both"}
        names |= dict.fromkeys(both)
        lines.append((line, told[person] | {name: repr(mm3) for name, mm3 in both.items()}))
    return Table(table.path, list(names), [(n, {c: t.get(c, "") for c in names}) for n, t in lines])


def _renamed(table: Table) -> Table:
    """A column for each structure that the names of other tools add up to; cfgen's stay."""
    found = recognise(table.filled)
    parts = {name: (columns, 1.0) for name, columns in found.parts.items() if columns != (name,)}
    # Fluid outside the brain is what is left of the head.
    parts |= {name: (columns, -1.0) for name, columns in found.rest.items()}
    if not parts:
        return table
    lines = []
    for line, cells in table.lines:
        told = {}
        for name, (columns, sign) in parts.items():
            texts = [table.cell(cells, column) for column in columns]
            if not all(NUMBER.fullmatch(text) for text in texts):
                # What is no number is a fault of the structure; one part alone may be missing.
                told[name] = next((t for t in texts if t and not NUMBER.fullmatch(t)), "")
                continue
            volume = sign * sum(map(float, texts))
            head = table.cell(cells, found.parts[HEAD][0]) if sign < 0 else "0"
            told[name] = repr(float(head) + volume) if NUMBER.fullmatch(head) else ""
        lines.append((line, cells | told))
    used = {column for columns, _ in parts.values() for column in columns}
    kept = [column for column in table.columns if column not in used]
    names = [*dict.fromkeys((*kept, *parts))]
    return Table(table.path, names, [(n, {c: t[c] for c in names}) for n, t in lines])


def _joined(table: Table, manifest: Table, faults: list[str]) -> Table:
    """The table with what a manifest says of the same subject and session."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for _, cells in manifest.lines:
        key = (_first(manifest, cells, _SUBJECT), _first(manifest, cells, _SESSION))
        rows.setdefault(key, cells)
    lines = []
    for line, cells in table.lines:
        key = (_first(table, cells, _SUBJECT), _first(table, cells, _SESSION))
        beside = rows.get(key)
        if beside is None:
            visit = f" session '{key[1]}'" if key[1] else ""
            faults.append(
                f"{table.path.name}:{line} column subject: '{key[0]}'{visit} is not in "
                f"{manifest.path.name}"
            )
        own = {column: text for column, text in cells.items() if text}
        taken = {column.lower() for column in own}
        told = {c: t for c, t in (beside or {}).items() if c.lower() not in taken}
        lines.append((line, own | told))
    columns: dict[str, str] = {}
    for column in (*table.columns, *manifest.columns):
        columns.setdefault(column.lower(), column)
    spelt = [
        (n, {columns[c.lower()]: t for c, t in cells.items() if c.lower() in columns})
        for n, cells in lines
    ]
    names = list(columns.values())
    return Table(table.path, names, [(n, {c: t.get(c, "") for c in names}) for n, t in spelt])


def _unsaid(table: Table, schema: Schema, given: Values, free: Collection[str]) -> list[str]:
    """Those of `free` that nobody speaks of."""
    names = [n for n in free if n not in given and not columns_of(n, table.columns, schema)]
    for name in names:
        log.info("%s: %s is unknown: the average of its levels acts", table.path.name, name)
    return names


def _refuse_absent(table: Table, schema: Schema, given: Values) -> None:
    """One fault for a whole column, with columns that may be meant."""
    absent = [
        v
        for v in schema.variables
        if v.name not in given and not columns_of(v.name, table.columns, schema)
    ]
    if not absent:
        return
    spare = [c for c in table.columns if c.lower() not in {n.lower() for n in schema.names}]
    hints = []
    for variable in absent:
        near = get_close_matches(variable.name, spare, 1, cutoff=0.8)
        hints += [f"rename '{near[0]}' to '{variable.name}'?"] if near else []
    if not hints:
        told = f"say it by --from {absent[0].name}=... or in a --manifest, or go on without: "
        hints = [f"{told if absent[0].unit != VOLUME_UNIT else 'go on without: '}"]
        hints[0] += " ".join(f"--missing {v.name}" for v in absent)
    raise ManifestError(
        table.path,
        f"no {_kinds(absent)} {', '.join(v.name for v in absent)}; found {_listed(table.columns)}",
        f"a column each for {_listed(schema.names)}",
        " ".join(hints),
    )


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _kinds(variables: Sequence[object]) -> str:
    regions = [getattr(v, "unit", "") == VOLUME_UNIT for v in variables]
    plural = "s" if len(variables) > 1 else ""
    return f"region{plural}" if all(regions) else f"column{plural}"


def _warn_of_unknown(table: Table, schema: Schema) -> None:
    """A column that means nothing here is named: it may be misspelt."""
    read = {
        column.name for name in schema.names for column in columns_of(name, table.columns, schema)
    }
    known = {name.lower() for name in (*COLUMNS, *_SUBJECT, *_SESSION, *_MEASURED, *ANSWERS)}
    unknown = [
        c
        for c in table.columns
        if c not in read
        and c.lower() not in known
        and not c.lower().startswith(NOISE)
        and not c.lower().endswith(ENDINGS)
    ]
    if unknown:
        one = len(unknown) == 1
        log.warning(
            "%s: column%s %s %s unknown and left alone",
            table.path.name,
            "" if one else "s",
            _listed(unknown),
            "is" if one else "are",
        )
