"""What the judge learns from: real scans, and targets out of columns and label maps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cfgen.data.acquisition_columns import acquisition_of, value_text
from cfgen.data.conditions import Schema, Value, Variable, default_schema, fit_schema, with_columns
from cfgen.data.manifest import read_manifest
from cfgen.data.regions import recognise_table, volumes_mm3
from cfgen.data.table import MISSING, Row, read_table
from cfgen.data.volume import read_volume
from cfgen.errors import ManifestError, UsageError
from cfgen.measure.judge import VOLUME
from cfgen.train.cohort import read_images

log = logging.getLogger("cfgen")

# The word for the region groups of a row's label map, each as a share of the brain.
VOLUMES = "volumes"
# More texts than this are names or remarks, no classes.
MOST_LEVELS = 10
# In the column that 'simulate' and 'counterfactual' write into their manifests.
REAL = {"false", "no", "0"}
# No part of the brain: fluid outside it, and sums of groups that are there themselves.
NOT_BRAIN = ("csf", "head", "cortex_")


@dataclass(frozen=True)
class JudgeData:
    """`images` (N, D, H, W) float16 on the model grid, `targets` (N, T) as `encode` makes them, and
    the rows they came from."""

    images: Tensor
    targets: Tensor
    rows: list[Row]


def read_judge_data(
    manifest: Path, names: Sequence[str], grid: str
) -> tuple[Schema, JudgeData, JudgeData]:
    """The targets, and the real scans of the splits train and val.

    `names` are 'age', 'sex', other columns of the manifest (numbers, or texts of 2 to 10 levels) or
    'volumes'. Centre, spread and levels are those of train. Synthetic rows are left out, which is
    said. Raises ManifestError where a column, a split or every value of it is missing.
    """
    rows = _real(manifest, read_manifest(manifest, default_schema()))
    rows = [_with_volumes(row) for row in rows] if VOLUMES in names else rows
    train, val = ([r for r in rows if r.split == split] for split in ("train", "val"))
    for split, part in (("train", train), ("val", val)):
        if not part:
            raise ManifestError(
                manifest,
                f"no real scan has split '{split}'",
                "real scans in train to learn from, and in val to measure the judge on",
            )
    schema = judge_targets(manifest, names, train)
    return schema, _data(manifest, train, schema, grid), _data(manifest, val, schema, grid)


def _data(manifest: Path, rows: list[Row], schema: Schema, grid: str) -> JudgeData:
    targets = torch.from_numpy(np.stack([encode(schema, row) for row in rows]))
    return JudgeData(read_images(manifest, rows, grid), targets, rows)


def _real(manifest: Path, rows: list[Row]) -> list[Row]:
    real = [r for r in rows if r.extra.get("synthetic", "no").lower() in REAL | MISSING]
    if len(real) < len(rows):
        log.warning(
            "judge: %d synthetic rows of %s are left out", len(rows) - len(real), manifest.name
        )
    return real


def _with_volumes(row: Row) -> Row:
    """The row with a column for every region group of its label map, as shares of the brain."""
    if row.labels is None:
        return row
    labels = read_volume(row.labels).data
    volumes = volumes_mm3(labels, 1.0, recognise_table(labels, row.labels))
    brain = sum(v for name, v in volumes.items() if not name.startswith(NOT_BRAIN))
    shares = {VOLUME + name: repr(v / brain) for name, v in volumes.items()}
    return Row(**{**vars(row), "extra": row.extra | shares})


def judge_targets(manifest: Path, names: Sequence[str], train: list[Row]) -> Schema:
    """The targets with what the train rows have of them: numbers first, then categories."""
    there = read_table(manifest).columns
    known = [_cells(row) for row in train]
    asked = tuple(v for v in default_schema().variables if v.name in names)
    columns = [n for n in dict.fromkeys(names) if n not in (*default_schema().names, VOLUMES)]
    for name in columns:
        if name not in there and not any(name in cells for cells in known):
            raise ManifestError(
                f"{manifest} column {name}", "there is none", f"one of {', '.join(there)}"
            )
    for v in asked:
        if not any(v.name in row.values for row in train):
            raise ManifestError(f"{manifest} column {v.name}", "no train row has it", v.expected)
    if VOLUMES in names:
        columns += _groups(manifest, known)
    try:
        further = with_columns(Schema(()), columns, known).variables
    except ManifestError as error:
        raise ManifestError(f"{manifest} {error.where}", error.found, error.expected) from error
    for v in further:
        if len(v.levels) > MOST_LEVELS:
            raise ManifestError(
                f"{manifest} column {v.name}",
                f"{len(v.levels)} different texts",
                f"at most {MOST_LEVELS}, or numbers",
            )
    ordered = sorted((*asked, *further), key=lambda v: v.kind == "categorical")
    schema = Schema(tuple(ordered))
    return fit_schema([_Known(_values(schema, row)) for row in train], schema)


def _groups(manifest: Path, known: list[dict[str, str]]) -> list[str]:
    """The volumes that differ between the train rows."""
    names = dict.fromkeys(n for cells in known for n in cells if n.startswith(VOLUME))
    varied = [n for n in names if len({cells[n] for cells in known if n in cells}) > 1]
    if not varied:
        raise ManifestError(
            f"{manifest} column labels", "no train row has one", "label maps, for the volumes"
        )
    return varied


@dataclass(frozen=True)
class _Known:
    """What `fit_schema` looks at."""

    values: dict[str, Value]


def _cells(row: Row) -> dict[str, str]:
    """What is known, the acquisition also by cfgen's names where the columns have those of BIDS."""
    cells = {k: v for k, v in row.extra.items() if v.lower() not in MISSING}
    return {n: value_text(v) for n, v in acquisition_of(row).items()} | cells


def _values(schema: Schema, row: Row) -> dict[str, Value]:
    """The targets that a row has, in raw units. A level that train does not have is unknown."""
    cells = _cells(row)
    values: dict[str, Value] = {}
    for v in schema.variables:
        if v.name in row.values:
            values[v.name] = row.values[v.name]
        elif v.kind == "categorical" and cells.get(v.name) in v.levels:
            values[v.name] = cells[v.name]
        elif v.kind == "continuous" and v.name in cells:
            values[v.name] = _number(v, cells[v.name], row)
    return values


def _number(v: Variable, text: str, row: Row) -> float:
    try:
        return float(Schema((v,)).check_value(v.name, text, f"{row.source} column {v.name}"))
    except UsageError as error:
        raise ManifestError(error.where, error.found, error.expected, error.fix) from error


def encode(schema: Schema, row: Row) -> np.ndarray:
    """(T,) float32: standardised numbers, and which level it is; NaN where it is unknown."""
    values = _values(schema, row)
    return np.array([_encoded(v, values.get(v.name)) for v in schema.variables], np.float32)


def _encoded(v: Variable, value: Value | None) -> float:
    if value is None:
        return float("nan")
    if v.kind == "categorical":
        return float(v.levels.index(str(value)))
    return (float(value) - v.center) / v.scale


def raw(targets: Schema, encoded: Tensor) -> np.ndarray:
    """(N, T) in raw units of what `encode` made: numbers, and which level; NaN stays."""
    scale = np.array([v.scale for v in targets.variables])
    return encoded.numpy() * scale + np.array([v.center for v in targets.variables])


def usual(targets: Schema, data: JudgeData) -> np.ndarray:
    """(T,) the mean or the commonest level, in raw units."""
    values = []
    for v, column in zip(targets.variables, raw(targets, data.targets).T, strict=True):
        known = column[np.isfinite(column)]
        commonest = float(np.bincount(known.astype(int)).argmax()) if v.levels else 0.0
        values.append(commonest if v.levels else float(known.mean()))
    return np.array(values)
