"""How far a counterfactual is from the true one, which only a simulator knows.

G1 to G6 of the protocol: error of the image, of the change alone, of the volumes, of the labels and
of the masks, and the skill against leaving the scan as it is. Arrays of a subject: `factual`,
`edited`, `true` (D, H, W) in one unit of brightness, `mask` (D, H, W) of the brain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cfgen.metrics.statistics import Estimate, mean_over_people, ratio_over_people


@dataclass(frozen=True)
class ImageTruth:
    """G1: errors inside the mask. G2: `correlation` and `slope` of the made change on the true one
    where that is above `noise_sigma`, and `leakage`: change where there is none, over true change
    where there is one. G6: `skill`, 1 at the truth, 0 for a copy of the factual scan."""

    mae: float
    rmse: float
    psnr_db: float
    correlation: float
    slope: float
    leakage: float
    skill: float


def image_truth(
    factual: np.ndarray, edited: np.ndarray, true: np.ndarray, mask: np.ndarray, noise_sigma: float
) -> ImageTruth:
    """G1, G2 and G6 of one counterfactual. `psnr_db` takes the true image's range as its peak."""
    f, m, t = (x[mask].astype(np.float64) for x in (factual, edited, true))
    error, change, due = m - t, m - f, t - f
    rmse = float(np.sqrt((error**2).mean()))
    peak = float(np.ptp(t))
    moved = np.abs(due) > 2 * noise_sigma
    correlation = slope = leakage = float("nan")
    if moved.any():
        slope = float((change[moved] * due[moved]).sum() / (due[moved] ** 2).sum())
        if change[moved].std() > 0 and due[moved].std() > 0:
            correlation = float(np.corrcoef(change[moved], due[moved])[0, 1])
        still = np.abs(due) <= 0.05 * noise_sigma
        if still.any():
            leakage = float(np.abs(change[still]).mean() / np.abs(due[moved]).mean())
    doing_nothing = float((due**2).sum())
    return ImageTruth(
        mae=float(np.abs(error).mean()),
        rmse=rmse,
        psnr_db=float(20 * np.log10(peak / rmse)) if rmse > 0 else float("inf"),
        correlation=correlation,
        slope=slope,
        leakage=leakage,
        skill=1 - float((error**2).sum()) / doing_nothing if doing_nothing else float("nan"),
    )


@dataclass(frozen=True)
class VolumeTruth:
    """G3 of one region over people: mean signed error in %, slope of the change on the true
    change, and `nmse`, 1 for doing nothing and 0 for the truth."""

    error_percent: Estimate
    slope: Estimate
    nmse: Estimate


def volume_truth(
    factual: np.ndarray, edited: np.ndarray, true: np.ndarray, subjects: Sequence[str]
) -> VolumeTruth:
    """Volumes (n,) of one region in any unit, of `subjects` who may have several scans."""
    due, change = true - factual, edited - factual
    return VolumeTruth(
        error_percent=mean_over_people(100 * (edited - true) / true, subjects),
        slope=ratio_over_people(change * due, due**2, subjects),
        nmse=ratio_over_people((edited - true) ** 2, due**2, subjects),
    )


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """G4, G5: overlap of two masks; 1 where both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * float((a & b).sum()) / total if total else 1.0


def surface_distance_mm(a: np.ndarray, b: np.ndarray, spacing_mm: float) -> float:
    """G4: mean distance of the surfaces of two masks (ASSD), both ways; NaN where one is empty."""
    if not a.any() or not b.any():
        return float("nan")
    # No surface is outside the box of both.
    box = ndimage.find_objects((a | b).astype(np.uint8))[0]
    a, b = (np.pad(m[box], 1) for m in (a, b))
    surfaces = [m & ~ndimage.binary_erosion(m) for m in (a, b)]
    to_a, to_b = (ndimage.distance_transform_edt(~s, sampling=spacing_mm) for s in surfaces)
    distances = np.concatenate([to_b[surfaces[0]], to_a[surfaces[1]]])
    return float(distances.mean())


def group_mean_shift(factuals: Sequence[np.ndarray], trues: Sequence[np.ndarray]) -> np.ndarray:
    """The baseline that gives everybody the mean change of a training cohort (D, H, W)."""
    shift = np.zeros(factuals[0].shape, np.float64)
    for factual, true in zip(factuals, trues, strict=True):
        shift += true - factual
    return shift / len(factuals)
