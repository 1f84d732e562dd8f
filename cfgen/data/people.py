"""Tables of people and the volumes of their brains, in whatever layout, as one: a line a person or
visit, a column a structure (mm3) by its name in `volume_columns.py`.

Wide tables have DLMUSE's, FreeSurfer's or these names; the long one is what `cfgen segment
--volumes` writes, a line a structure and side: sides are added up, and summed probabilities come
before counts. Conditions are columns of the table, or of another beside it, by subject and session.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from cfgen.data.schema import NUMBER
from cfgen.data.table import Table, refuse
from cfgen.data.volume_columns import HEAD, recognise
from cfgen.data.volumes import RegionVolume, read_region_volume, sums
from cfgen.errors import ManifestError

SUBJECT = ("subject", "participant_id", "subject_id", "subjectid", "id")
SESSION = ("session", "session_id")
_LONG = ("structure", "side", "volume_mm3", "soft_volume_mm3")

Visit = tuple[str, str]


def visit_of(table: Table, cells: Mapping[str, str]) -> Visit:
    """Subject and session of a line; '' where the table does not say it."""
    subject, session = (
        next((text for name in names if (text := table.cell(cells, name))), "")
        for names in (SUBJECT, SESSION)
    )
    return subject, session


def is_long(table: Table) -> bool:
    """Whether it has a line a structure."""
    return table.column("structure") is not None


def wide(table: Table) -> Table:
    """A long table as a line a person; other columns must be the same in all of a person's lines.
    Raises ManifestError."""
    absent = [name for name in ("structure", "side", "volume_mm3") if table.column(name) is None]
    if absent:
        raise ManifestError(
            table.path, f"no column {' and '.join(absent)}", "a table of 'cfgen segment --volumes'"
        )
    others = [c for c in table.columns if c.lower() not in _LONG]
    first: dict[Visit, int] = {}
    told: dict[Visit, dict[str, str]] = {}
    volumes: dict[Visit, dict[tuple[str, str], RegionVolume]] = {}
    faults = []
    for line, cells in table.lines:
        where, visit = f"{table.path.name}:{line}", visit_of(table, cells)
        first.setdefault(visit, line)
        known = told.setdefault(visit, {})
        for column in others:
            text = table.cell(cells, column)
            if text and known.setdefault(column, text) != text:
                faults.append(
                    f"{where} column {column}: '{text}'; "
                    f"'{known[column]}' in another line of {visit[0]}"
                )
        try:
            volume = read_region_volume(table, line, cells)
        except ManifestError as error:
            faults.append(str(error))
            continue
        own, region = volumes.setdefault(visit, {}), (volume.structure, volume.side)
        if region in own:
            faults.append(f"{where}: {volume.structure} of {visit[0]} twice")
        own[region] = volume
    refuse(table.path, faults)
    lines, names = [], dict.fromkeys(others)
    for visit, line in first.items():
        parts = volumes[visit].values()
        both = {name: repr(mm3) for (name, side), mm3 in sums(parts).items() if side == "both"}
        names |= dict.fromkeys(both)
        lines.append((line, told[visit] | both))
    return _table(table, names, lines)


def renamed(table: Table) -> Table:
    """A column for each structure that the names of other tools add up to; cfgen's stay."""
    recognised = recognise(table.filled)
    parts = {n: columns for n, columns in recognised.parts.items() if columns != (n,)}
    # Fluid outside the brain is what is left of the head.
    parts |= recognised.rest
    if not parts:
        return table
    lines = []
    for line, cells in table.lines:
        told = {}
        for name, columns in parts.items():
            texts = [table.cell(cells, column) for column in columns]
            if not all(NUMBER.fullmatch(text) for text in texts):
                # What is no number is a fault of the structure; one part alone may be missing.
                told[name] = next((t for t in texts if t and not NUMBER.fullmatch(t)), "")
                continue
            volume = sum(map(float, texts))
            if name in recognised.rest:
                head = table.cell(cells, recognised.parts[HEAD][0])
                volume = float(head) - volume if NUMBER.fullmatch(head) else 0.0
                told[name] = repr(volume) if volume > 0 else ""
            else:
                told[name] = repr(volume)
        lines.append((line, cells | told))
    used = {column for columns in parts.values() for column in columns}
    kept = [column for column in table.columns if column not in used]
    return _table(table, dict.fromkeys((*kept, *parts)), lines)


def joined(table: Table, beside: Table) -> tuple[Table, list[str]]:
    """The table with what another says of the same subject and session, where it says nothing
    itself; and a fault of every line that has none there."""
    rows: dict[Visit, dict[str, str]] = {}
    for _, cells in beside.lines:
        rows.setdefault(visit_of(beside, cells), cells)
    columns: dict[str, str] = {}
    for column in (*table.columns, *beside.columns):
        columns.setdefault(column.lower(), column)
    lines, faults = [], []
    for line, cells in table.lines:
        subject, session = visit_of(table, cells)
        other = rows.get((subject, session))
        if other is None:
            visit = f" session '{session}'" if session else ""
            faults.append(
                f"{table.path.name}:{line} column subject: '{subject}'{visit} is not in "
                f"{beside.path.name}"
            )
        own = {column: text for column, text in cells.items() if text}
        told = {columns[c.lower()]: text for c, text in (other or {}).items()}
        lines.append((line, told | own))
    return _table(table, columns.values(), lines), faults


def without(table: Table, columns: Collection[str]) -> Table:
    return _table(table, [c for c in table.columns if c not in columns], table.lines)


def _table(
    table: Table, columns: Iterable[str], lines: Iterable[tuple[int, Mapping[str, str]]]
) -> Table:
    """Of the same file: these columns of these lines, '' where one says nothing."""
    names = list(columns)
    return Table(
        table.path, names, [(n, {c: cells.get(c, "") for c in names}) for n, cells in lines]
    )
