"""Several samples of one counterfactual: their mean, their spread, intervals of region volumes.

Sample 0 is the deterministic edit. Every other one abducts with noise of its own, the same for the
reconstruction and all targets, and is rendered on the scan by itself. The spread is the sampler's:
how far the answer rests on the noise. It is not the uncertainty of the model or of a population.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit

from cfgen.measure.volumes import RegionVolume, sums

Measure = Callable[[np.ndarray], list[RegionVolume]]
LEVEL = 0.95


@dataclass(frozen=True)
class Sampled:
    """`mean` and `sd` (I, J, K) float32 of the images, `sd` None of a single one; `volumes`, the
    regions of each image."""

    mean: np.ndarray
    sd: np.ndarray | None
    volumes: list[list[RegionVolume]] = field(default_factory=list)


def summarise(images: Iterable[np.ndarray], measure: Measure | None = None) -> Sampled:
    """Mean and standard deviation (n - 1) in one pass, two images in memory (Welford 1962)."""
    mean = squares = np.zeros(0, np.float32)
    volumes: list[list[RegionVolume]] = []
    before, n = None, 0
    for n, image in enumerate(images, 1):
        if measure is not None:
            # Nothing is changed by a null edit: its samples are one and the same array.
            volumes.append(volumes[-1] if image is before else measure(image))
        before = image
        if n == 1:
            mean = image
            continue
        if n == 2:
            mean, squares = mean.copy(), np.zeros_like(mean)
        off = image - mean
        mean += off / n
        squares += off * (image - mean)
    sd = np.sqrt(squares / (n - 1)) if n > 1 else None
    return Sampled(mean, sd, volumes)


def sample_noise(
    shape: Sequence[int], seed: int, sample: int, device: torch.device
) -> torch.Tensor | None:
    """Standard normal noise of a sample, float32, the same on any device; None for sample 0."""
    if sample == 0:
        return None
    digest = hashlib.sha256(f"{seed} {sample}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(tuple(shape), generator=generator).to(device)


def record(sampled: Sampled, count: int, sd_file: str) -> dict[str, Any]:
    """The samples for a sidecar."""
    return {
        "Count": count,
        "Spread": "of the sampler alone, not of the model or of a population",
        "StandardDeviation": sd_file,
        "Volumes": (
            "summed probabilities of the bundle's segmenter in each sample's image; Low95 and "
            "High95 hold a further sample with probability 95 % (t distribution)"
            if sampled.volumes
            else "not measured: the bundle has no segmenter"
        ),
        "Regions": intervals(sampled.volumes),
    }


def intervals(volumes: Sequence[Sequence[RegionVolume]]) -> list[dict[str, Any]]:
    """Mean, SD and prediction interval of every region over two or more samples, in mm3."""
    tables = [sums(v) for v in volumes]
    out = []
    for structure, side in sorted(tables[0]) if tables else []:
        values = np.array([table[structure, side] for table in tables])
        n = len(values)
        mean, sd = float(values.mean()), float(values.std(ddof=1))
        reach = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * sd * (1 + 1 / n) ** 0.5
        out.append(
            {
                "Structure": structure,
                "Side": side,
                "Mean_mm3": round(mean, 1),
                "SD_mm3": round(sd, 1),
                "Low95_mm3": round(max(mean - reach, 0.0), 1),
                "High95_mm3": round(mean + reach, 1),
            }
        )
    return out
