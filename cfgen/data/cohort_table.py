"""Tables of people for the causal model: conditions and region volumes, one line a visit.

A CSV or TSV, also a manifest or BIDS participants.tsv, in the layouts and names of `people.py`. Age
and sex are read in all spellings that manifests have; any other column is numbers where every cell
is one, else categories.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfgen.data.columns import columns_of
from cfgen.data.people import SESSION, SUBJECT, is_long, joined, renamed, visit_of, wide, without
from cfgen.data.readings import Reader
from cfgen.data.schema import NUMBER, default_schema
from cfgen.data.table import COLUMNS, Table, read_table, refuse
from cfgen.data.volume_columns import HEAD, REGIONS, recognise, wrong_unit
from cfgen.errors import ManifestError

TRAIN = "train"


@dataclass(frozen=True)
class CohortTable:
    """`columns`: name -> (n,) float64 with NaN, or text with '', where a cell is empty; `volumes`
    the names among them that are mm3 of a structure, head size included; `sources` 'file:line'."""

    path: Path
    subjects: tuple[str, ...]
    sessions: tuple[str, ...]
    sources: tuple[str, ...]
    columns: Mapping[str, np.ndarray]
    volumes: tuple[str, ...]
    names: str

    def rows(self, wanted: np.ndarray) -> CohortTable:
        """These rows (indices or flags) alone."""
        places = np.arange(len(self.subjects))[wanted]
        return CohortTable(
            self.path,
            tuple(self.subjects[i] for i in places),
            tuple(self.sessions[i] for i in places),
            tuple(self.sources[i] for i in places),
            {name: values[places] for name, values in self.columns.items()},
            self.volumes,
            self.names,
        )

    def missing(self, name: str) -> list[str]:
        """The sources of the rows that have no value in a column."""
        values = self.columns[name]
        gone = np.isnan(values) if values.dtype.kind == "f" else values == ""
        return [self.sources[i] for i in np.flatnonzero(gone)]


def read_cohort_table(path: Path, volumes: Path | None = None) -> CohortTable:
    """Read a table; `volumes` is a long table of the same subjects and sessions.

    Raises ManifestError with every cell that cannot be read, by line and column, for volumes in
    another unit than mm3, and where there are no volumes.
    """
    path = path / "participants.tsv" if path.is_dir() else path
    table = read_table(path)
    if volumes is None and is_long(table):
        raise ManifestError(
            path, "is the long table of 'cfgen segment --volumes'", "a line a person",
            "give it as --volumes, and the table of age and sex as --table",
        )  # fmt: skip
    names = recognise(table.filled).names
    table = renamed(table)
    if volumes is not None:
        table, names = _measured(table, wide(read_table(volumes))), "cfgen"
    faults: list[str] = []
    visits = [visit_of(table, cells) for _, cells in table.lines]
    regions = {c: _volumes(table, c, faults) for c in table.filled if _is_volume(c)}
    columns = _conditions(table, regions, faults) | regions
    refuse(path, faults)
    if not set(regions) - {HEAD}:
        raise ManifestError(
            path,
            "has no volumes of regions",
            f"columns such as hippocampus or {HEAD}, DLMUSE's codes or FreeSurfer's names",
            "give the table of 'cfgen segment --volumes' as --volumes",
        )
    for name, values in regions.items():
        unit = wrong_unit(name, values)
        if unit:
            middle = float(np.nanmedian(values))
            raise ManifestError(
                path, f"column {name} seems to be in {unit}: its middle is {middle:g}", "mm3"
            )
    return CohortTable(
        path,
        tuple(
            subject or f"line {line}"
            for (subject, _), (line, _) in zip(visits, table.lines, strict=True)
        ),
        tuple(session for _, session in visits),
        tuple(f"{path.name}:{line}" for line, _ in table.lines),
        columns,
        tuple(regions),
        names,
    )


def train_rows(table: CohortTable) -> CohortTable:
    """The rows to learn from: those of split 'train' where the table has splits. Raises
    ManifestError when there are none."""
    split = table.columns.get("split")
    if split is None or split.dtype.kind == "f" or not (split != "").any():
        return table
    wanted = split == TRAIN
    if not wanted.any():
        there = ", ".join(sorted(set(split.tolist()) - {""}))
        raise ManifestError(
            table.path,
            f"no row has split '{TRAIN}'; found {there}",
            "people to learn from",
            f"write '{TRAIN}' in their column split, or leave the column out to take everybody",
        )
    return table.rows(wanted)


def _is_volume(column: str) -> bool:
    return column in REGIONS or column == HEAD


def _measured(table: Table, volumes: Table) -> Table:
    """The table with the volumes of another in place of its own. Raises ManifestError where that
    has nobody of it."""
    ids = (*SUBJECT, *SESSION)
    rest = [c for c in volumes.columns if not _is_volume(c) and c.lower() not in ids]
    own = [c for c in table.columns if _is_volume(c)]
    whole, faults = joined(without(table, own), without(volumes, rest))
    if len(faults) == len(table.lines):
        raise ManifestError(
            volumes.path, "has none of the table's people", "their subject and session"
        )
    return whole


def _volumes(table: Table, column: str, faults: list[str]) -> np.ndarray:
    """mm3 (n,); a structure of 0 mm3 was not found: it is missing."""
    values = np.full(len(table.lines), np.nan)
    for i, (line, cells) in enumerate(table.lines):
        text = table.cell(cells, column)
        if text and not (NUMBER.fullmatch(text) and float(text) >= 0):
            faults.append(f"{table.path.name}:{line} column {column}: '{text}'; expected mm3")
        elif text and float(text) > 0:
            values[i] = float(text)
    return values


def _conditions(table: Table, taken: Iterable[str], faults: list[str]) -> dict[str, np.ndarray]:
    """Age and sex, and every other column as numbers or categories."""
    schema = default_schema()
    reader = Reader(table, schema)
    readings = [reader.read(cells) for _, cells in table.lines]
    for (line, _), reading in zip(table.lines, readings, strict=True):
        faults += [f"{table.path.name}:{line} {text}" for text in reading.problems.values()]
    out: dict[str, np.ndarray] = {}
    used = {c.lower() for c in (*taken, *SUBJECT, *SESSION)} | {*COLUMNS} - {"split"}
    for name, empty in (("age", np.nan), ("sex", "")):
        columns = columns_of(name, table.columns, schema)
        used |= {c.name.lower() for c in columns}
        if columns:
            out[name] = np.array([r.values.get(name, empty) for r in readings])
    for column in table.columns:
        if column.lower() not in used:
            out[column] = _either(table, column)
    return out


def _either(table: Table, column: str) -> np.ndarray:
    texts = [table.cell(cells, column) for _, cells in table.lines]
    if any(texts) and all(NUMBER.fullmatch(t) for t in texts if t):
        return np.array([float(t) if t else np.nan for t in texts])
    return np.array(texts, dtype=str)
