"""Prepared scans of a manifest, in memory, ready for training."""

from __future__ import annotations

import hashlib
import json
import math
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
from cfgen.train.mapped import mapped
from cfgen.train.together import first_alone


@dataclass(frozen=True)
class Cohort:
    """`images` (N, D, H, W) float16 on the model grid, which may lie on disk, `conditions` (N, V)
    standardised, `weights` (N,) sampling weights, and the rows they came from."""

    images: Tensor
    conditions: Tensor
    weights: Tensor
    rows: list[Row]

    def spaced(self, every: int, most: int) -> Cohort:
        """Every so many of its scans, and `most` at most."""
        step = max(every, -(-len(self.rows) // most))
        where = slice(None, None, step)
        # Out of the file that they may lie in.
        images = self.images[where].clone()
        return Cohort(images, self.conditions[where], self.weights[where], self.rows[where])


def read_cohort(
    manifest: Path,
    schema: Schema,
    grid: str,
    split: str,
    *,
    folder: Path | None = None,
    most: int | None = None,
) -> Cohort:
    """The prepared scans of one split, the first `most` of them where that is said; a cohort of
    more than `IN_MEMORY_BYTES` lies in a file in `folder`, where there is one. Raises ManifestError
    naming every row that does not fit."""
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
    rows = rows[:most]
    path = None if folder is None else folder / f"{split}.npy"
    images = read_images(manifest, rows, grid, faults, path)
    conditions = torch.from_numpy(np.stack([schema.encode(r.values) for r in rows]))
    return Cohort(images, conditions, balanced_weights(rows), rows)


# A cohort that is larger is read from one file, as it is asked for.
IN_MEMORY_BYTES = 2 * 2**30


def read_images(
    manifest: Path,
    rows: Sequence[Row],
    grid: str,
    faults: Sequence[str] = (),
    path: Path | None = None,
) -> Tensor:
    """Prepared scans (N, D, H, W) float16; more than `IN_MEMORY_BYTES` of them lie in a file at
    `path`, where one is given. Raises ManifestError naming every row that is not on the grid, after
    `faults` that were found before."""
    expected, problems = model_grid(grid), list(faults)
    shape = (len(rows), *expected.shape)

    large = 2 * math.prod(shape) > IN_MEMORY_BYTES

    def read(number: int) -> np.ndarray:
        row = rows[number]
        volume = read_volume(row.image)
        if volume.grid.matches(expected):
            return volume.data.astype(np.float16)
        problems.append(f"{row.source}: {row.image.name} is not on grid {grid}")
        if large:
            # Nothing wrong is to get into the file.
            _refuse(manifest, problems, grid)
        return np.zeros(expected.shape, np.float16)

    if path is None or not large:
        images = torch.from_numpy(np.stack([read(n) for n in range(len(rows))]))
        _refuse(manifest, problems, grid)
        return images
    _refuse(manifest, problems, grid)
    stats = [(str(r.image.absolute()), r.image.stat()) for r in rows]
    known = [(name, s.st_size, s.st_mtime_ns) for name, s in stats]
    digest = hashlib.sha256(json.dumps([grid, known]).encode()).hexdigest()
    return first_alone(lambda: mapped(path, digest, shape, read, "scans read"))


def _refuse(manifest: Path, problems: Sequence[str], grid: str) -> None:
    if problems:
        raise ManifestError(
            manifest, "; ".join(problems[:20]), f"scans that 'cfgen preprocess --grid {grid}' wrote"
        )


def balanced_weights(rows: list[Row]) -> Tensor:
    """Every decade of age is drawn equally often (CDM section 4.1); equal weights without ages."""
    decades = [int(float(r.values["age"])) // 10 if "age" in r.values else 0 for r in rows]
    count = Counter(decades)
    return torch.tensor([1.0 / count[d] for d in decades])


def read_splits(
    manifest: Path,
    schema: Schema,
    grid: str,
    *,
    folder: Path | None = None,
    most: int | None = None,
) -> tuple[Cohort, Cohort]:
    """Those to train on and those for figures, each as `read_cohort` gives it."""
    train, val = (
        read_cohort(manifest, schema, grid, split, folder=folder, most=most)
        for split in ("train", "val")
    )
    return train, val


def training_schema(manifest: Path, conditions: Sequence[str]) -> Schema:
    """Age, sex and further columns, with what the train split has of them."""
    known = default_schema()
    if conditions:
        rows = read_manifest(manifest, known)
        known = with_columns(known, conditions, [r.extra for r in rows])
    return fit_schema([r for r in read_manifest(manifest, known) if r.split == "train"], known)


def splined(schema: Schema) -> Tensor:
    """Which inputs of the condition vector are numbers, whose effect may bend."""
    return torch.tensor(
        [v.kind == "continuous" and not v.added for v in schema.variables for _ in range(v.width)]
    )
