"""Another protocol's contrast against closed forms: levels, mixtures, refusals, blur, noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cfgen.data.parcellation import NAMES
from cfgen.data.volume import Grid, Volume
from cfgen.edit.contrast import TRANSMIT_IN_BRAIN, contrast_curve
from cfgen.edit.rerender import Effects, OwnNoise, Rendering, Resolution, rerender
from cfgen.errors import ImageError, UsageError
from cfgen.measure.levels import Levels, tissue_levels
from cfgen.measure.segmenter import Posteriors
from cfgen.sim.physics import TISSUES, TRANSMIT, Acquisition, noise_level, signal, tissue

SCAN = Acquisition()
TARGETS = {
    "field": replace(SCAN, field_tesla=1.5),
    "7 T": replace(SCAN, field_tesla=7.0),
    "TE": replace(SCAN, te_ms=6.0),
    "TR": replace(SCAN, tr_ms=1900.0),
    "TI": replace(SCAN, ti_ms=1150.0),
    "flip angle": replace(SCAN, flip_degrees=14.0),
    "sequence": Acquisition("Siemens", 3.0, "SPGR", 20.0, 4.0, 0.0, 25.0),
}
SHAPE = (20, 22, 18)
GRID = Grid(SHAPE, np.diag([2.0, 2.0, 2.0, 1.0]))


def signals(scan):
    flip = 1 + TRANSMIT[scan.field_tesla] * TRANSMIT_IN_BRAIN
    white, grey, fluid = (float(signal(tissue(n, scan.field_tesla), scan, flip)) for n in TISSUES)
    return np.array([1.0, grey / white, fluid / white])


def levels_of(scan, white=1000.0, log_bias=None):
    w, g, f = white * signals(scan)
    field = torch.zeros(SHAPE) if log_bias is None else log_bias
    return Levels(float(w), float(g), float(f), field, GRID)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_tissues_get_the_signal_of_the_target(target):
    curve = contrast_curve(levels_of(SCAN), SCAN, target)
    found = curve(1000 * signals(SCAN))
    assert found == pytest.approx(1000 * signals(target), rel=1e-3)
    for name in TISSUES:
        assert curve.t1_ms[name] == pytest.approx(tissue(name, 3.0).t1_ms, rel=1e-3)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_the_curve_rises_and_has_a_way_back(target):
    curve = contrast_curve(levels_of(SCAN), SCAN, target)
    x = np.linspace(-50, 2500, 5000)
    y = curve(x).astype(float)
    assert (np.diff(y) > 0).all()
    assert curve(np.zeros(1))[0] == 0
    assert curve.inverse(y) == pytest.approx(x, abs=0.01)
    numeric = np.diff(y) / np.diff(x)
    assert np.median(np.abs(curve.slope((x[1:] + x[:-1]) / 2) - numeric)) < 1e-2


def test_mixtures_of_neighbours_stay_mixtures():
    """A voxel with half of each has half of both signals, under either protocol."""
    curve = contrast_curve(levels_of(SCAN), SCAN, TARGETS["sequence"])
    before, after = 1000 * signals(SCAN), 1000 * signals(TARGETS["sequence"])
    for a, b in ((0, 1), (1, 2)):
        mixed = curve(np.array([(before[a] + before[b]) / 2]))
        assert mixed[0] == pytest.approx((after[a] + after[b]) / 2, rel=1e-3)


def test_a_subjects_own_t1_is_found():
    """Grey matter of a T1 15 % longer, under one protocol, has the signal of that T1 under the
    other."""
    flip = 1 + TRANSMIT[3.0] * TRANSMIT_IN_BRAIN
    matter = replace(tissue("grey", 3.0), t1_ms=1450 * 1.15)
    target = TARGETS["TI"]
    own, due = (
        1000 * float(signal(matter, s, flip) / signal(tissue("white", 3.0), s, flip))
        for s in (SCAN, target)
    )
    curve = contrast_curve(replace(levels_of(SCAN), grey=own), SCAN, target)
    # Proton density follows T1 on the line of tissues, and is a little higher there.
    assert curve.t1_ms["grey"] == pytest.approx(1450 * 1.15, rel=0.05)
    assert curve(np.array([own]))[0] == pytest.approx(due, rel=0.01)


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        (SCAN, replace(SCAN, ti_ms=500.0, slices=60), "target protocol.*MPRAGE signal is not mono"),
        (replace(SCAN, ti_ms=500.0, slices=60), SCAN, "source protocol.*longer InversionTime"),
        (SCAN, Acquisition("GE", 3.0, "SPGR", 30.0, 4.0, 0.0, 3.0), "not monotone.*larger FlipAn"),
    ],
)
def test_contrast_that_folds_is_refused(source, target, said):
    with pytest.raises(UsageError, match=said):
        contrast_curve(levels_of(SCAN), source, target)


def rendered(image, target, effects=Effects(), noise=None, log_bias=None, slice_mm=2.0):
    levels = levels_of(SCAN, log_bias=log_bias)
    pair = (
        Rendering(SCAN, Resolution(2.0, 2.0, 2)),
        Rendering(target, Resolution(slice_mm, 2.0, 2)),
    )
    scan = Volume(np.asarray(image, np.float32), GRID.affine)
    return rerender(scan, levels, pair, effects, noise)


def test_bias_is_divided_out_and_put_in_again():
    axis = torch.linspace(-0.2, 0.2, SHAPE[0])[:, None, None].expand(SHAPE)
    field = np.exp(axis.numpy())
    grey = 1000 * signals(SCAN)[1]
    due = 1000 * signals(TARGETS["field"])[1]
    for kind, factor in (("keep", field), ("remove", 1.0), ("target", field**0.4)):
        made = rendered(grey * field, TARGETS["field"], Effects(bias=kind), log_bias=axis)
        assert made.image == pytest.approx(due * factor * np.ones(SHAPE), rel=2e-3)
        assert made.undone(made.image) == pytest.approx(grey * field, rel=1e-3)


def test_thick_slices_blur_along_their_axis_to_their_width():
    # Brighter from plane to plane: one value alone would be an empty background.
    plain = np.full(SHAPE, 700.0) + np.arange(SHAPE[0])[:, None, None]
    image = plain.copy()
    image[10, 11, 9] += 100
    made = rendered(image, SCAN, Effects(resolution=True), slice_mm=6.0)
    line = made.image[10, 11].astype(float) - plain[10, 11]
    assert np.abs(made.image[9] - plain[9]).max() < 1e-2
    # Var of a Gaussian of full width sqrt(6^2 - 2^2) mm, in voxels of 2 mm.
    at = np.arange(SHAPE[2])
    variance = (line * (at - 9) ** 2).sum() / line.sum()
    assert variance == pytest.approx((36 - 4) / 2.355**2 / 4, rel=0.03)
    assert line.sum() == pytest.approx(100, rel=0.01)
    finer = rendered(image, SCAN, Effects(resolution=True), slice_mm=1.0)
    assert np.array_equal(finer.image, rendered(image, SCAN).image)


def test_fresh_noise_brings_the_snr_to_what_is_expected():
    target = replace(SCAN, field_tesla=1.5)
    expected = noise_level(target, 2.0) / noise_level(SCAN, 2.0)
    assert expected > 1.3
    rng = np.random.default_rng(1)
    scan = 1000 + 20 * rng.standard_normal(SHAPE)

    def again(seed):
        noise = OwnNoise(20.0, np.random.default_rng(seed))
        return rendered(scan, target, Effects(noise="fresh"), noise).image

    made = again(5)
    assert made.std() == pytest.approx(20 * expected, rel=0.05)
    assert np.array_equal(made, again(5))
    assert not np.array_equal(made, again(6))


def test_own_noise_is_scaled_where_it_is():
    target = replace(SCAN, field_tesla=1.5)
    rng = np.random.default_rng(1)
    noise = 20 * rng.standard_normal(SHAPE)
    own = OwnNoise(20.0, rng)
    made = rendered(1000 + noise, target, Effects(noise="own"), own).image
    assert np.corrcoef(made.ravel(), noise.ravel())[0, 1] > 0.97
    ratio = noise_level(target, 2.0) / noise_level(SCAN, 2.0)
    assert made.std() == pytest.approx(20 * ratio, rel=0.15)


def test_an_empty_background_stays_as_it_is():
    image = np.full(SHAPE, -1024.0)
    image[6:14, 6:16, 5:13] = 700
    noise = OwnNoise(20.0, np.random.default_rng(0))
    made = rendered(image, TARGETS["TI"], Effects(noise="fresh"), noise).image
    assert (made[image == -1024] == -1024).all()
    assert (made[image == 700] > 0).all()


def head(log_bias, noise=0.0, levels=(1000.0, 720.0, 210.0)):
    """A ball of white matter with a fluid core in a shell of cortex, its posteriors, the scan."""
    shape = (48, 48, 48)
    at = torch.stack(torch.meshgrid(*[torch.arange(n) - 23.5 for n in shape], indexing="ij"))
    radius = at.square().sum(0).sqrt()
    rank = torch.bucketize(radius, torch.tensor([5.0, 16.0, 21.0]))
    names = ("lateral_ventricle", "cerebral_wm", "cortex_frontal", "background")
    classes = torch.zeros(len(NAMES), *shape)
    for place, name in enumerate(names[:3]):
        classes[NAMES.index(name)] = (rank == place).float()
    classes[0] = (rank == 3).float()
    white, grey, fluid = levels
    brightness = torch.tensor([fluid, white, grey, 0.0])[rank]
    image = brightness * log_bias(at / 24).exp()
    image += noise * torch.from_numpy(np.random.default_rng(0).standard_normal(shape)).float()
    grid = Grid(shape, np.diag([2.0, 2.0, 2.0, 1.0]))
    posteriors = Posteriors(classes, (at[0] < 0).float(), grid)
    return Volume(np.asarray(image, np.float32), grid.affine), posteriors


def test_levels_and_bias_field_are_found_together():
    def field(x):
        return 0.15 * x[0] - 0.1 * x[1] * x[2] + 0.08 * x[2] ** 2

    scan, posteriors = head(field, noise=20.0)
    found = tissue_levels(scan, posteriors)
    assert (found.white, found.grey) == pytest.approx((1000, 720), rel=0.03)
    # The darker half of what may hold some brain: without any, by as much as the noise does.
    assert found.fluid == pytest.approx(210 - 0.67 * 20, abs=4)
    at = torch.stack(torch.meshgrid(*[(torch.arange(48) - 23.5) / 24] * 3, indexing="ij"))
    error = (found.log_bias - field(at))[posteriors.classes[NAMES.index("cerebral_wm")] > 0]
    assert float(error.std()) < 0.01
    assert found.bias_on(scan.grid) == pytest.approx(found.log_bias.exp().numpy(), rel=1e-4)


def test_what_is_no_t1w_contrast_is_refused():
    scan, posteriors = head(lambda x: 0 * x[0], levels=(500.0, 720.0, 1000.0))
    with pytest.raises(ImageError, match=r"expected a T1w scan: fluid < grey < white"):
        tissue_levels(scan, posteriors)
