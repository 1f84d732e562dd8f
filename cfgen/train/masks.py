"""Region masks of the training scans, moved as the views of each are, beside their latents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cfgen.data.table import Row
from cfgen.data.volume import read_volume
from cfgen.errors import ManifestError
from cfgen.measure.region_masks import region_masks
from cfgen.nets.controlnet import pool_masks
from cfgen.progress import each
from cfgen.space.grids import model_grid
from cfgen.train.augmentation import AUGMENTATION
from cfgen.train.cohort import Cohort
from cfgen.train.control import ControlConfig
from cfgen.train.latents import LatentData, seen
from cfgen.train.mapped import mapped
from cfgen.train.together import first_alone


class MaskReader:
    """Masks (views, K, P, d, h, w) float16 of a scan's label map, in parts of the latent's voxels,
    whose grid is of `shape`, `detail` along an edge."""

    def __init__(
        self,
        rows: Sequence[Row],
        regions: Sequence[str],
        grid: str,
        shape: Sequence[int],
        detail: int,
        seed: int,
    ) -> None:
        self.rows, self.regions, self.grid = rows, tuple(regions), grid
        self.shape, self.detail, self.seed = tuple(shape), detail, seed

    def read(self, number: int, views: int) -> Tensor:
        """Raises ImageError as `region_masks`."""
        path = self.rows[number].labels
        assert path is not None
        masks = region_masks(read_volume(path), self.regions, model_grid(self.grid))
        whole = torch.from_numpy(masks).float()
        # The image's own values decide nothing of where its voxels go.
        walk = seen(torch.zeros_like(whole[0]), views, self.seed, number, whole)
        moved = [m for _, m in walk if m is not None]
        return torch.stack([pool_masks(m, self.shape, self.detail) for m in moved]).half()

    def all(self, views: int) -> Tensor:
        """(N, views, K, P, d, h, w), in memory."""
        numbers = each(range(len(self.rows)), len(self.rows), "label maps read")
        return torch.stack([self.read(n, views) for n in numbers])

    def cached(self, views: int, path: Path) -> Tensor:
        """The same in a .npy file at `path` that is mapped into memory (`mapped`)."""
        files = [(str(r.labels), r.labels.stat()) for r in self.rows if r.labels is not None]
        known = [(name, s.st_size, s.st_mtime_ns) for name, s in files]
        how = self.regions, self.grid, self.shape, self.detail, self.seed
        recipe = [known, *how, views, repr(AUGMENTATION)]
        digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()

        def make(number: int) -> np.ndarray:
            return self.read(number, views).numpy()

        shape = (len(self.rows), views, len(self.regions), self.detail**3, *self.shape)
        return mapped(path, digest, shape, make, "label maps read")


def require_labels(manifest: Path, cohorts: Sequence[Cohort]) -> None:
    """Raises ManifestError naming every row without a label map."""
    faults = [r.source or r.subject for c in cohorts for r in c.rows if r.labels is None]
    if faults:
        more = f" and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise ManifestError(
            manifest,
            f"no label map: {', '.join(faults[:20])}{more}",
            "a column labels, on the model grid",
            "give 'cfgen preprocess' a manifest with label maps (cfgen segment)",
        )


def with_masks(
    data: LatentData,
    train: Cohort,
    val: Cohort,
    control: ControlConfig,
    grid: str,
    seed: int,
    folder: Path | None,
) -> LatentData:
    """The same latents with the masks of their views; in a file in `folder`, where there is one. Of
    several processes the first makes it.

    Raises ImageError as `region_masks`, and ManifestError for a region that no scan of the train
    split has.
    """
    regions, views = control.regions, data.latents.shape[1]
    how = regions, grid, data.shape[1:], control.detail, seed
    reader = MaskReader(train.rows, *how)
    if folder is None:
        masks = reader.all(views)
    else:
        path = folder / "masks.npy"
        masks = first_alone(lambda: reader.cached(views, path))
    require_seen(masks, regions)
    held_out = MaskReader(val.rows, *how).all(1)[:, 0]
    return replace(data, masks=masks, held_out_masks=held_out)


def require_seen(masks: Tensor, regions: Sequence[str]) -> None:
    """Raises ManifestError for a region that is empty in every scan of masks (N, views, K, ...)."""
    there = torch.zeros(len(regions), dtype=torch.bool)
    for scan in masks:
        there |= scan[0].flatten(1).any(1)
        if bool(there.all()):
            return
    missing = [name for name, known in zip(regions, there.tolist(), strict=True) if not known]
    raise ManifestError(
        "labels",
        f"the mask of {', '.join(missing)} is empty in every scan of the train split",
        "a scan that has it",
        "name the regions that there are: --regions",
    )
