"""Heads as they come from the field: in more air, turned in their grid, on odd backgrounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA, needs_data

from cfgen.bundle import read_bundle
from cfgen.config import PREPROCESS
from cfgen.data.volume import Volume, read_volume
from cfgen.errors import ImageError
from cfgen.measure import background, window
from cfgen.measure.segmenter import Segmentation, load_segmenter, segment
from cfgen.scan import prepare as prepare_file
from cfgen.scan.brain import Brain, stripped_mask
from cfgen.scan.gate import Gate, refuse, scan_measures
from cfgen.scan.open import look_at
from cfgen.scan.prepare import prepare
from cfgen.scan.render import render
from cfgen.space import registration
from cfgen.space.grids import resample
from cfgen.space.template import template_brain

DEFAULT = Path(background.__file__).parents[1] / "bundles" / "default"


def padded(scan: Volume, before: tuple[int, ...], after: tuple[int, ...], noise: float = 0.0):
    """`scan` with so many voxels of air more at the ends of its axes, where it was in the world."""
    widths = list(zip(before, after, strict=True))
    inside = np.pad(np.ones(scan.data.shape, bool), widths)
    air = noise * np.random.default_rng(0).rayleigh(size=inside.shape)
    affine = scan.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ before
    return Volume(np.where(inside, np.pad(scan.data, widths), air).astype(np.float32), affine)


def turned(scan: Volume, degrees: float) -> Volume:
    """The same head in a grid turned about x: what the scan lacks there is 0."""
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    centre = (scan.affine @ [*(np.array(scan.data.shape) - 1) / 2, 1])[:3]
    affine = turn @ scan.affine
    affine[:3, 3] = centre - turn[:3, :3] @ (centre - scan.affine[:3, 3])
    grid = type(scan.grid)(scan.grid.shape, affine)
    return Volume(resample(scan.data, scan.grid, grid), affine)


def a_head(shape=(70, 80, 90), at=(35, 40, 55)):
    """A ball of 60 mm radius with a bright shell, at 2 mm, a neck below it, noise in the air."""
    index = np.indices(shape)
    radius = np.sqrt(sum((i - c) ** 2 for i, c in zip(index, at, strict=True)))
    neck = (np.hypot(index[0] - at[0], index[1] - at[1]) < 14) & (index[2] < at[2])
    head = np.where(radius < 30, 600, np.where(neck, 400, 0)) + 500 * (abs(radius - 29) < 2)
    noise = 15 * np.random.default_rng(1).rayleigh(size=shape)
    return Volume((head + noise).astype(np.float32), np.diag([2.0, 2, 2, 1]))


@pytest.mark.parametrize("noise", [0.0, 20.0])
def test_a_head_is_cut_out_of_any_air_at_the_same_place(noise):
    """Uneven padding, with a bright speck in it, and 2 more dark corners: the same voxels."""
    scan = a_head()
    wide = padded(scan, (31, 14, 7), (18, 40, 33), noise)
    wide.data[2:4, 2:4, 2:4] = 3000
    alone, found = (window.head(window.upright(s, 2.0)) for s in (scan, wide))
    assert found.grid.shape == alone.grid.shape
    assert np.allclose(found.grid.affine, alone.grid.affine)
    middle = np.array(alone.grid.shape) // 2
    ball = tuple(slice(m - 8, m + 8) for m in middle)
    assert np.array_equal(found.data[ball], alone.data[ball])


def test_a_head_with_shoulders_ends_below_the_brain():
    """A trunk, 400 mm wide and 300 mm below the vertex, is not part of the head that is cut out."""
    scan = a_head((200, 120, 200), (100, 60, 160))
    scan.data[5:195, 20:100, :40] = 500
    found = window.head(window.upright(scan, 2.0))
    top = found.grid.affine[2, 3] + 2 * found.grid.shape[2]
    assert abs(top - 2 * 192) < 16
    assert found.grid.shape[2] * 2 < window.HEAD_MM + 32
    assert found.grid.shape[0] < 100


def test_windows_of_a_padded_scan_are_the_same_to_the_bit():
    """The middle of the brain may be found a little differently: the lattice takes that up."""
    scan = a_head()
    wide = padded(scan, (5, 8, 11), (0, 3, 9))
    one, two = window.upright(scan, 2.0), window.upright(wide, 2.0)
    a = window.window(one, np.array([34.2, 40.1, 55.0]))
    b = window.window(two, np.array([39.0, 48.3, 65.8]))
    assert np.allclose(a.grid.affine, b.grid.affine)
    inside = tuple(slice(20, 60) for _ in range(3))
    assert np.array_equal(a.data[inside], b.data[inside])


def test_beyond_the_field_of_view_is_dark():
    scan = a_head()
    image = window.upright(scan.like(scan.data + 1000), 2.0)
    part = window.window(image, np.array([0.0, 0, 0]))
    assert part.data[0, 0, 0] == image.dark
    assert 1000 < image.dark < 1010


@pytest.fixture
def aligned(monkeypatch):
    """No bias field is found, and the scan lies on the template as it is."""
    monkeypatch.setattr(
        registration, "log_bias_field", lambda data, *_: np.zeros(data.shape, np.float32)
    )
    monkeypatch.setattr(prepare_file, "affine_between", lambda *_: np.eye(4))


@pytest.mark.parametrize("value", [-1024.0, 500.0])
def test_a_stripped_scan_is_the_same_on_any_background(value, aligned):
    """Mask, measures and prepared image are those of the scan on 0; 500 lies amid the tissue."""
    data, grid = template_brain()
    data = np.rint(data * 1000)
    if value < 0:
        # A hole that the stripping tool left; amid the tissue's values none could be told.
        data[48:50, 57:60, 40:42] = 0
    plain = Volume(data.astype(np.float32), grid.affine)
    other = plain.like(np.where(data == 0, value, data))
    mask, same = stripped_mask(plain), stripped_mask(other)
    assert mask is not None
    assert same is not None
    assert np.array_equal(mask, same)
    assert scan_measures(other, mask) == scan_measures(plain, mask)
    one, two = prepare(plain, mask, PREPROCESS), prepare(other, mask, PREPROCESS)
    assert np.array_equal(one.image, two.image)
    # Written back: the background is as it was, and the brain is the other scan's.
    for how in ("residual", "latent"):
        expected = render(plain, one, one.image, one.image * 0.5, how)
        back = render(other, two, two.image, two.image * 0.5, how)
        assert (back[data == 0] == value).all()
        tissue = mask & (data > 0)
        assert np.allclose(back[tissue], expected[tissue], atol=1e-3)
        assert (back[tissue] >= 0).all()


def test_a_background_of_nothing_or_of_noise_is_left_alone():
    scan = a_head()
    assert background.levelled(scan.data) is scan.data
    data, _ = template_brain()
    assert background.levelled(data) is data


def enhanced(scan: Volume, mask: np.ndarray, times: float) -> Volume:
    """Vessels of `times` the brightness of white matter in 2 % of the brain, by a fixed draw."""
    from scipy import ndimage

    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=mask.shape), 1.0)
    vessels = mask & (noise > np.percentile(noise[mask], 98))
    return scan.like(np.where(vessels, times * np.percentile(scan.data[mask], 90), scan.data))


def test_a_contrast_agent_is_named(aligned):
    """What is refused for its likeness to the template says why it is unlike."""
    data, grid = template_brain()
    mask = data > 0.05
    scan = Volume(data, grid.affine)
    assert scan_measures(scan, mask)["brightest"] < 1.4
    bright = enhanced(scan, mask, 4.0)
    assert scan_measures(bright, mask)["brightest"] > 3
    looked = look_at(bright, Brain(mask, "mask", ""), PREPROCESS, Gate())
    with pytest.raises(ImageError, match=r"refused: brightest .*gadolinium.*\((likeness|middle)"):
        refuse(bright, looked.findings, Gate())


def volumes(found: Segmentation, scan: Volume) -> dict[str, float]:
    wanted = ("lateral_ventricle", "cerebral_wm", "brain", "tiv")
    told: dict[str, float] = {"mask": float(found.mask.sum()) * scan.grid.voxel_mm3}
    for v in found.volumes:
        if v.structure in wanted:
            told[v.structure] = told.get(v.structure, 0.0) + v.hard_mm3
    return told


@needs_data
def test_a_real_head_has_its_volumes_in_any_air_and_grid():
    """To 1 % in 400 mm of air with noise, to 2 % through a turn of 45 degrees,
    which interpolates the scan once more."""
    device = torch.device("cpu")
    net = load_segmenter(read_bundle(DEFAULT), device)
    scan = read_volume(DATA / "scans" / "pumi_sub-001_T1w.nii.gz")
    expected = volumes(segment(net, scan, device), scan)
    noise = 0.02 * float(np.percentile(scan.data, 99))
    cases = [
        (padded(scan, (64, 31, 51), (40, 41, 21), noise), 0.01),
        (turned(scan, 45), 0.02),
    ]
    for other, tolerance in cases:
        found = volumes(segment(net, other, device), other)
        assert found == pytest.approx(expected, rel=tolerance)
