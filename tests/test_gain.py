"""The ventricle count and the gain, on brains whose ventricles are a known slab."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfgen.causal.gain import fit_gain
from cfgen.causal.latent_mean import LatentMean
from cfgen.data.regions import codes
from cfgen.metrics.morphometry import ventricle_count

SHAPE = (40, 8, 8)
VENTRICLE = codes("dlmuse", "lateral_ventricle")[0]
GREY = codes("dlmuse", "basal_ganglia")[0]
# Brightness rises by this over a voxel at the ventricle's edge.
SLOPE = 0.1


def brain(half_width):
    """A dark slab of a given half width (voxels) whose edge is a ramp; labels cut it half-way."""
    x = np.abs(np.arange(SHAPE[0]) - SHAPE[0] / 2 + 0.5)
    profile = np.clip(0.5 + SLOPE * (x - half_width), 0.1, 0.9)
    image = np.broadcast_to(profile[:, None, None], SHAPE).astype(np.float32)
    labels = np.full(SHAPE, GREY)
    labels[x < half_width] = VENTRICLE
    return image, labels


def test_the_count_is_the_volume():
    for half_width in (4.0, 6.0, 9.0):
        image, labels = brain(half_width)
        meter = ventricle_count(image, labels, "dlmuse", 2.0)
        assert meter.count(image) == (labels == VENTRICLE).sum()
        # Nothing dark far from the ventricles counts.
        image = image.copy()
        image[:3] = 0
        assert meter.count(image) == (labels == VENTRICLE).sum()


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_mean_of_half_strength_gets_twice_the_gain(strength):
    ages = np.linspace(-2, 2, 21)
    # Half widths 8 exp(0.25 age); the cohort's log volume changes by 0.25 a unit of age.
    widths = 8 * np.exp(0.25 * ages)
    brains = [brain(w) for w in widths]
    images = torch.from_numpy(np.stack([image for image, _ in brains]))[:, :]
    labels = np.stack([own for _, own in brains])
    # The shift that moves a ramp's edge by d voxels is -SLOPE d; 8 * 0.25 voxels at age 0.
    coefficients = torch.zeros(2, 1, *SHAPE)
    coefficients[1] = -strength * SLOPE * 8 * 0.25
    mean = LatentMean(
        torch.full((1, 4), torch.nan), coefficients, torch.ones(1, 1, 1, 1), torch.ones(1)
    )
    field = fit_gain(
        mean,
        images,
        labels,
        torch.from_numpy(ages).float()[:, None],
        2.0,
        lambda x: x,
        lambda z0: z0,
    )
    # Whole voxels are counted, so the widths come in steps of a sixteenth.
    assert field.max().item() == pytest.approx(1 / strength, abs=0.2)
    # Nobody's ventricles come near the faces of the volume.
    assert field[0].max().item() == pytest.approx(1, abs=0.05)
