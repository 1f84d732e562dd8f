"""Prepared scans of a manifest, in memory, ready for training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cfgen.data.conditions import Schema, default_schema, fit_schema, with_columns
from cfgen.data.manifest import read_manifest
from cfgen.data.table import Row
from cfgen.data.volume import read_volume
from cfgen.errors import ManifestError
from cfgen.space.grids import model_grid


@dataclass(frozen=True)
class Cohort:
    """`images` (N, D, H, W) float16 on the model grid, `conditions` (N, V) standardised,
    `weights` (N,) sampling weights, and the rows they came from."""

    images: Tensor
    conditions: Tensor
    weights: Tensor
    rows: list[Row]

    @property
    def masks(self) -> Tensor:
        return self.images > 0


def read_cohort(manifest: Path, schema: Schema, grid: str, split: str) -> Cohort:
    """The prepared scans of one split. Raises ManifestError naming every row that does not fit."""
    rows = [r for r in read_manifest(manifest, schema) if r.split == split]
    if not rows:
        raise ManifestError(
            manifest,
            f"no row has split '{split}'",
            "prepared scans with a split column",
            "add a split column with train and val",
        )
    faults = [
        f"{row.source}: {' and '.join(missing)} missing"
        for row in rows
        if (missing := schema.missing(row.values))
    ]
    images = read_images(manifest, rows, grid, faults)
    conditions = torch.from_numpy(np.stack([schema.encode(r.values) for r in rows]))
    return Cohort(images, conditions, balanced_weights(rows), rows)


def read_images(
    manifest: Path, rows: Sequence[Row], grid: str, faults: Sequence[str] = ()
) -> Tensor:
    """Prepared scans (N, D, H, W) float16. Raises ManifestError naming every row that is not on the
    grid, after `faults` that were found before."""
    expected, problems, images = model_grid(grid), list(faults), []
    for row in rows:
        volume = read_volume(row.image)
        if not volume.grid.matches(expected):
            problems.append(f"{row.source}: {row.image.name} is not on grid {grid}")
        images.append(torch.from_numpy(volume.data).half())
    if problems:
        raise ManifestError(
            manifest, "; ".join(problems[:20]), f"scans that 'cfgen preprocess --grid {grid}' wrote"
        )
    return torch.stack(images)


def balanced_weights(rows: list[Row]) -> Tensor:
    """Every decade of age is drawn equally often (CDM section 4.1); equal weights without ages."""
    decades = [int(float(r.values["age"])) // 10 if "age" in r.values else 0 for r in rows]
    count = Counter(decades)
    return torch.tensor([1.0 / count[d] for d in decades])


def read_splits(manifest: Path, schema: Schema, grid: str) -> tuple[Cohort, Cohort]:
    return read_cohort(manifest, schema, grid, "train"), read_cohort(manifest, schema, grid, "val")


def training_schema(manifest: Path, conditions: Sequence[str]) -> Schema:
    """Age, sex and further columns, with what the train split has of them."""
    known = default_schema()
    if conditions:
        rows = read_manifest(manifest, known)
        known = with_columns(known, conditions, [r.extra for r in rows])
    return fit_schema([r for r in read_manifest(manifest, known) if r.split == "train"], known)


def splined(schema: Schema) -> Tensor:
    """Which inputs of the condition vector are numbers, whose effect may bend."""
    return torch.tensor([v.kind == "continuous" for v in schema.variables for _ in range(v.width)])
