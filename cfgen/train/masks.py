"""Region masks of the training scans, moved as the views of each are, beside their latents.

They are read by the segmenter that will read them in a scan that is edited, from the same prepared
image: what it gets wrong is then wrong in both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cfgen.data.volume import Volume
from cfgen.errors import ManifestError
from cfgen.measure.region_masks import region_fractions
from cfgen.nets.controlnet import pool_masks
from cfgen.nets.segmenter import Segmenter
from cfgen.progress import each
from cfgen.space.grids import model_grid
from cfgen.train.augmentation import AUGMENTATION
from cfgen.train.cohort import Cohort
from cfgen.train.control import ControlConfig
from cfgen.train.latents import LatentData, hash_weights, seen
from cfgen.train.mapped import mapped
from cfgen.train.together import first_alone

# A part of a latent voxel that is of a region by more than this.
SEEN = 0.5


@dataclass(frozen=True)
class MaskReader:
    """Masks (views, K, P, d, h, w) of prepared scans as the segmenter `net` reads them, told as
    `control` says, of latents whose grid is of `shape`; their views are drawn by `seed`."""

    net: Segmenter
    control: ControlConfig
    grid: str
    shape: tuple[int, ...]
    device: torch.device
    seed: int

    def read(self, image: Tensor, number: int, views: int, path: Path | None = None) -> Tensor:
        """Of a scan (D, H, W), the `number`-th of its cohort. Raises ImageError as
        `region_fractions`."""
        scan = Volume(image.float().numpy(), model_grid(self.grid).affine, path)
        whole = region_fractions(self.net, scan, self.control.regions, self.device)
        # The image's own values decide nothing of where its voxels go.
        walk = seen(torch.zeros(image.shape), views, self.seed, number, whole)
        detail = self.control.detail
        return torch.stack([pool_masks(m, self.shape, detail) for _, m in walk if m is not None])

    def of(self, cohort: Cohort, number: int, views: int) -> Tensor:
        return self.read(cohort.images[number], number, views, cohort.rows[number].image)

    def all(self, cohort: Cohort, views: int) -> Tensor:
        """(N, views, K, P, d, h, w) float16, in memory."""
        numbers = each(range(len(cohort.rows)), len(cohort.rows), "masks read")
        return torch.stack([self.of(cohort, n, views) for n in numbers]).half()

    def cached(self, cohort: Cohort, views: int, path: Path) -> Tensor:
        """The same in a .npy file at `path` that is mapped into memory (`mapped`)."""
        files = [(str(r.image), r.image.stat()) for r in cohort.rows]
        known = [(name, s.st_size, s.st_mtime_ns) for name, s in files]
        weights = hashlib.sha256()
        hash_weights(weights, self.net)
        how = self.control.regions, self.shape, self.control.detail, self.seed
        recipe = [known, weights.hexdigest(), *how, views, repr(AUGMENTATION)]
        digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()

        def make(number: int) -> np.ndarray:
            return self.of(cohort, number, views).numpy()

        parts = len(self.control.regions), self.control.detail**3, *self.shape
        return mapped(path, digest, (len(known), views, *parts), make, "masks read")


def with_masks(
    data: LatentData, reader: MaskReader, train: Cohort, val: Cohort, folder: Path | None
) -> LatentData:
    """The same latents with the masks of their views; in a file in `folder`, where there is one. Of
    several processes the first makes it.

    Raises ImageError as `region_fractions`, and ManifestError for a region that no scan of the
    train split has.
    """
    views = data.latents.shape[1]
    if folder is None:
        masks = reader.all(train, views)
    else:
        path = folder / "masks.npy"
        masks = first_alone(lambda: reader.cached(train, views, path))
    require_seen(masks, reader.control.regions)
    return replace(data, masks=masks, held_out_masks=reader.all(val, 1)[:, 0])


def require_seen(masks: Tensor, regions: Sequence[str]) -> None:
    """Raises ManifestError for a region that is empty in every scan of masks (N, views, K, ...)."""
    there = torch.zeros(len(regions), dtype=torch.bool)
    for scan in masks:
        there |= (scan[0] > SEEN).flatten(1).any(1)
        if bool(there.all()):
            return
    missing = [name for name, known in zip(regions, there.tolist(), strict=True) if not known]
    raise ManifestError(
        "labels",
        f"the mask of {', '.join(missing)} is empty in every scan of the train split",
        "a scan that has it",
        "name the regions that there are: --regions",
    )
