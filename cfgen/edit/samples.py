"""Several samples of one counterfactual: their mean, their spread, intervals of region volumes.

Sample 0 is the deterministic edit. Of a latent edit every other one abducts with noise of its own,
the same for the reconstruction and all targets: the spread is the sampler's, how far the answer
rests on the noise. Of moved tissue every other one follows a law fitted to resampled people: the
spread is the law's. Moved tissue that is filled has both. It is never that of a population.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from scipy.special import stdtrit

from cfgen.data.volumes import RegionVolume, sums
from cfgen.edit.sidecar import RegionInterval, SamplesRecord
from cfgen.streams import Purpose, torch_stream

Measure = Callable[[np.ndarray], list[RegionVolume]]
LEVEL = 0.95
Spread = Literal["sampler", "law of volumes", "law of volumes and the sampler"]


@dataclass(frozen=True)
class Sampled:
    """`mean` and `sd` (I, J, K) float32 of `count` images, `sd` None of one; `volumes` are the
    regions of each."""

    mean: np.ndarray
    sd: np.ndarray | None
    count: int
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
    return Sampled(mean, sd, n, volumes)


def sample_noise(
    shape: Sequence[int], seed: int, subject: str, sample: int, device: torch.device
) -> torch.Tensor | None:
    """Standard normal noise of a sample, float32, the same on any device; None for sample 0.

    `subject` names the scan, by its hash: people of a cohort do not share their noise.
    """
    if sample == 0:
        return None
    generator = torch_stream(seed, Purpose.SAMPLES, subject, sample)
    return torch.randn(tuple(shape), generator=generator).to(device)


def record(sampled: Sampled, sd_file: str, whose: Spread) -> SamplesRecord:
    """The samples for a sidecar; `whose` spread it is."""
    return SamplesRecord(
        count=sampled.count,
        spread=f"of the {whose} alone, not of a population",
        standard_deviation=sd_file,
        volumes=(
            "summed probabilities of the bundle's segmenter in each sample's image; Low95 and "
            "High95 hold a further sample with probability 95 % (t distribution)"
            if sampled.volumes
            else "not measured: the bundle has no segmenter"
        ),
        regions=intervals(sampled.volumes),
    )


def intervals(volumes: Sequence[Sequence[RegionVolume]]) -> list[RegionInterval]:
    """Mean, SD and prediction interval of every region over two or more samples, in mm3."""
    tables = [sums(v) for v in volumes]
    regions = []
    for structure, side in sorted(tables[0]) if tables else []:
        values = np.array([table[structure, side] for table in tables])
        n = len(values)
        mean, sd = float(values.mean()), float(values.std(ddof=1))
        reach = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * sd * (1 + 1 / n) ** 0.5
        regions.append(
            RegionInterval(
                structure,
                side,
                mean=round(mean, 1),
                sd=round(sd, 1),
                low95=round(max(mean - reach, 0.0), 1),
                high95=round(mean + reach, 1),
            )
        )
    return regions
