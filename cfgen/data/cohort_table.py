"""Tables of people for the causal model: conditions and region volumes, one line a visit.

A CSV or TSV, also a manifest or BIDS participants.tsv. Age and sex are read in all spellings that
manifests have; volumes as `volume_columns.py` knows them, from this table or from the long one of
`cfgen segment --volumes`; any other column is numbers where every cell is one, else categories.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfgen.data.columns import columns_of
from cfgen.data.readings import Reader
from cfgen.data.schema import NUMBER, default_schema
from cfgen.data.table import COLUMNS, SHOWN, Table, read_table
from cfgen.data.volume_columns import HEAD, LONG, REGIONS, recognise, wrong_unit
from cfgen.errors import ManifestError

SUBJECT = ("subject", "participant_id", "subject_id", "subjectid", "id")
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
    if volumes is None and all(table.column(name) for name in LONG):
        raise ManifestError(
            path, "is the long table of 'cfgen segment --volumes'", "a line a person",
            "give it as --volumes, and the table of age and sex as --table",
        )  # fmt: skip
    faults: list[str] = []
    subject = next((c for n in SUBJECT if (c := table.column(n))), None)
    subjects = [
        (cells[subject] if subject else "") or f"line {line}" for line, cells in table.lines
    ]
    sessions = [table.cell(cells, "session") for _, cells in table.lines]
    regions, taken, names = _wide(table, faults)
    if volumes is not None:
        regions, names = _long(volumes, list(zip(subjects, sessions, strict=True))), "cfgen"
    columns = _conditions(table, {subject or "", *taken}, faults) | regions
    _raise(path, faults)
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
    sources = tuple(f"{path.name}:{line}" for line, _ in table.lines)
    return CohortTable(
        path, tuple(subjects), tuple(sessions), sources, columns, tuple(regions), names
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


def _wide(table: Table, faults: list[str]) -> tuple[dict[str, np.ndarray], set[str], str]:
    """Volumes of a wide table, and the columns that they are in."""
    found = recognise(table.filled)
    cells: dict[str, np.ndarray] = {}
    for column in dict.fromkeys(c for parts in found.parts.values() for c in parts):
        cells[column] = _numbers(table, column, faults, lambda x: x >= 0, "mm3")
    out = {}
    for name, parts in found.parts.items():
        total = np.sum([cells[c] for c in parts], 0)
        out[name] = _above_zero(total)
    for name, parts in found.rest.items():
        out[name] = _above_zero(out[HEAD] - np.sum([cells[c] for c in parts], 0))
    return out, set(cells), found.names


def _above_zero(volumes: np.ndarray) -> np.ndarray:
    """A structure of 0 mm3 was not found: it is missing."""
    return np.where(volumes > 0, volumes, np.nan)


def _long(path: Path, people: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
    """Volumes of the table of `cfgen segment --volumes`: soft ones where there are."""
    table = read_table(path)
    absent = [name for name in ("subject", *LONG) if table.column(name) is None]
    if absent:
        raise ManifestError(path, f"no column {' and '.join(absent)}", "'cfgen segment --volumes'")
    faults: list[str] = []
    hard = _numbers(table, "volume_mm3", faults, lambda x: x >= 0, "mm3")
    soft = np.full(len(hard), np.nan)
    if table.column("soft_volume_mm3"):
        soft = _numbers(table, "soft_volume_mm3", faults, lambda x: x >= 0, "mm3")
    _raise(path, faults)
    place = {person: i for i, person in enumerate(people)}
    out: dict[str, np.ndarray] = {}
    for k, (_, cells) in enumerate(table.lines):
        name = table.cell(cells, "structure")
        i = place.get((table.cell(cells, "subject"), table.cell(cells, "session")))
        if i is None or name not in (*REGIONS, HEAD):
            continue
        volume = out.setdefault(name, np.full(len(people), np.nan))
        value = hard[k] if np.isnan(soft[k]) else soft[k]
        volume[i] = value if np.isnan(volume[i]) else volume[i] + value
    if not out:
        raise ManifestError(path, "has none of the table's people", "their subject and session")
    return {name: _above_zero(volume) for name, volume in out.items()}


def _conditions(table: Table, taken: Iterable[str], faults: list[str]) -> dict[str, np.ndarray]:
    """Age and sex, and every other column as numbers or categories."""
    schema = default_schema()
    reader = Reader(table, schema)
    readings = [reader.read(cells) for _, cells in table.lines]
    for (line, _), reading in zip(table.lines, readings, strict=True):
        faults += [f"{table.path.name}:{line} {text}" for text in reading.problems.values()]
    out: dict[str, np.ndarray] = {}
    used = {c.lower() for c in taken} | {c for c in COLUMNS if c != "split"}
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


def _numbers(
    table: Table,
    column: str,
    faults: list[str],
    allowed: Callable[[float], bool],
    unit: str,
) -> np.ndarray:
    values = np.full(len(table.lines), np.nan)
    for i, (line, cells) in enumerate(table.lines):
        text = table.cell(cells, column)
        if not text:
            continue
        if not NUMBER.fullmatch(text) or not allowed(float(text)):
            faults.append(f"{table.path.name}:{line} column {column}: '{text}'; expected {unit}")
            continue
        values[i] = float(text)
    return values


def _raise(path: Path, faults: list[str]) -> None:
    if faults:
        rest = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        lines = "".join(f"\n  {fault}" for fault in [*faults[:SHOWN], *rest])
        raise ManifestError(path, f"{len(faults)} fault{'s' if len(faults) > 1 else ''}{lines}")
