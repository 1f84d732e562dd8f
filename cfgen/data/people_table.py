"""Everybody of a table, by a schema: conditions and volumes of the causal model, checked.

Layouts and names are those of `people.py`. Conditions (age, sex, ...) are columns of the table, or
of a manifest beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from cfgen.data.columns import columns_of
from cfgen.data.people import SESSION, SUBJECT, is_long, joined, renamed, visit_of, wide
from cfgen.data.readings import Reader
from cfgen.data.schema import VOLUME_UNIT, Schema, Value, Values, Variable
from cfgen.data.table import COLUMNS, Table, read_table, refuse
from cfgen.data.volume_columns import HEAD, REGIONS
from cfgen.errors import ManifestError

log = logging.getLogger("cfgen")

# What a table of answers has besides: it can be asked again.
ANSWERS = ("world", "rates", "in_support", "outside_support")
ENDINGS = ("_factual", "_low95", "_high95", "_centile")
NOISE = "noise_"
# Columns that a message names before it counts the rest: DLMUSE writes 260.
_NAMED = 12
# Volumes that cfgen measures, whether or not a model has them.
_MEASURED = (*REGIONS, "brain", HEAD)


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
    level that the schema does not know, in some lines or in all; those of `free` only in
    all. Raises ManifestError, which lists every fault as 'file:line column ...': a region or
    condition that is not there, a cell without a value, or one that is no number, of no known
    level, or in another unit.
    """
    table = read_table(path)
    table = renamed(wide(table) if is_long(table) else table)
    faults: list[str] = []
    if manifest is not None:
        table, faults = joined(table, read_table(manifest))
    missing = {*missing, *_unsaid(table, schema, given, free)}
    needed = Schema(tuple(v for v in schema.variables if v.name not in missing))
    _refuse_absent(table, needed, given)
    _warn_of_unknown(table, schema)
    reader = Reader(table, schema)
    people = []
    for line, cells in table.lines:
        source = f"{path.name}:{line}"
        subject, session = visit_of(table, cells)
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
        people.append(Person(subject, session, values, source))
    refuse(path, faults)
    return people


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


def _kinds(variables: Sequence[Variable]) -> str:
    regions = [v.unit == VOLUME_UNIT for v in variables]
    plural = "s" if len(variables) > 1 else ""
    return f"region{plural}" if all(regions) else f"column{plural}"


def _warn_of_unknown(table: Table, schema: Schema) -> None:
    """A column that means nothing here is named: it may be misspelt."""
    read = {
        column.name for name in schema.names for column in columns_of(name, table.columns, schema)
    }
    known = {name.lower() for name in (*COLUMNS, *SUBJECT, *SESSION, *_MEASURED, *ANSWERS)}
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
