"""The way between a scan and the model grid, and the three renders, against closed forms.

Fields are linear in the world, which linear interpolation keeps; the registration is told.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cfgen.config import Preprocess
from cfgen.data.grid import Grid
from cfgen.data.volume import Volume
from cfgen.errors import ImageError
from cfgen.scan import prepare as prepare_file
from cfgen.scan.prepare import Prepared, prepare
from cfgen.scan.render import render
from cfgen.space import registration

MODEL = Grid(
    (24, 26, 22), np.array([[2.0, 0, 0, -24], [0, 2, 0, -26], [0, 0, 2, -22], [0, 0, 0, 1]])
)
# Axes along P, S and R with three spacings.
NATIVE = Grid(
    (20, 18, 16), np.array([[0, 0, 2.1, -12], [-1.9, 0, 0, 16], [0, 2.0, 0, -16], [0, 0, 0, 1]])
)
ANGLE = np.radians(12)
# Template mm to scanner mm: a turn, a stretch and a shift.
TO_NATIVE = np.array(
    [
        [1.1 * np.cos(ANGLE), -np.sin(ANGLE), 0, 2],
        [1.1 * np.sin(ANGLE), np.cos(ANGLE), 0, -1],
        [0, 0, 0.95, 1.5],
        [0, 0, 0, 1],
    ]
)
SCALE = 800.0


def places(grid: Grid, between: np.ndarray | None = None) -> np.ndarray:
    """(3, I, J, K): where every voxel lies, taken through a matrix between worlds."""
    matrix = grid.affine if between is None else between @ grid.affine
    linear, shift = matrix[:3, :3], matrix[:3, 3, None, None, None]
    return np.tensordot(linear, np.indices(grid.shape), 1) + shift


def slope(points: np.ndarray) -> np.ndarray:
    return (np.tensordot([1.0, -2.0, 0.5], points, 1) / 100).astype(np.float32)


@pytest.fixture
def prepared() -> Prepared:
    """The bias field falls along the scanner's x; the native mask is a block off the middle."""
    native_mask = np.zeros(NATIVE.shape, bool)
    native_mask[5:13, 4:14, 3:11] = True
    native_mask[5:7, 4:9, 3:8] = False
    return Prepared(
        image=np.zeros(MODEL.shape, np.float32),
        mask=np.ones(MODEL.shape, bool),
        grid=MODEL,
        native=NATIVE,
        native_mask=native_mask,
        to_native=TO_NATIVE,
        scale=SCALE,
        log_bias=(places(NATIVE)[0] / 50).astype(np.float32),
        bias_grid=NATIVE,
    )


def scan_of(data: np.ndarray) -> Volume:
    return Volume(np.asarray(data, np.float32), NATIVE.affine)


def textured() -> Volume:
    """No two voxels alike along an axis: what is of one brightness is empty background."""
    return scan_of(2000 + np.tensordot([1.0, 2.0, 3.0], np.indices(NATIVE.shape), 1))


def bias() -> np.ndarray:
    return np.exp(places(NATIVE)[0] / 50)


def due(prepared: Prepared) -> np.ndarray:
    """A change of `slope` in the template's world, in the scan's units on its own grid."""
    change = slope(places(NATIVE, np.linalg.inv(TO_NATIVE))) * bias() * SCALE
    return np.where(prepared.native_mask, change, 0)


def test_a_change_goes_to_the_scan_through_the_affine_with_bias_and_scale(prepared):
    found = prepared.change_to_native(slope(places(MODEL)))
    assert np.abs(found - due(prepared)).max() < 1e-3 * SCALE
    assert np.abs(due(prepared)).max() > 0.2 * SCALE


def test_a_finer_scan_gets_the_same_change(prepared):
    """Half the voxel: the change is upsampled by splines first, and lies in the same place."""
    affine = NATIVE.affine @ np.diag([0.5, 0.5, 0.5, 1])
    affine[:3, 3] = NATIVE.affine[:3, 3]
    fine = Grid(tuple(2 * n - 1 for n in NATIVE.shape), affine)
    mask = np.zeros(fine.shape, bool)
    mask[10:25, 8:27, 6:21] = True
    mask[10:13, 8:17, 6:15] = False
    there = replace(prepared, native=fine, native_mask=mask)
    found = there.change_to_native(slope(places(MODEL)))[::2, ::2, ::2]
    assert np.abs(found - due(prepared)).max() < 1e-3 * SCALE


def test_another_image_comes_back_without_bias_scale_and_what_is_outside(prepared):
    wanted = slope(places(MODEL)) + 0.5
    data = (slope(places(NATIVE, np.linalg.inv(TO_NATIVE))) + 0.5) * bias() * SCALE
    mask = np.zeros(MODEL.shape, bool)
    mask[10:14, 11:15, 9:13] = True
    found = replace(prepared, mask=mask).again(data.astype(np.float32), 0.55)
    assert (found[~mask] == 0).all()
    assert np.abs(found - np.clip(wanted, 0, 0.55))[mask].max() < 2e-3
    assert found.max() == np.float32(0.55)
    assert found[mask].min() < 0.5


def test_a_residual_adds_the_difference_inside_the_model_mask_alone(prepared):
    scan = textured()
    factual = np.full(MODEL.shape, 0.3, np.float32)
    edited = factual + slope(places(MODEL))
    out = render(scan, prepared, factual, edited, "residual")
    assert np.abs(out - (scan.data + due(prepared))).max() < 1e-3 * SCALE
    nothing = replace(prepared, mask=np.zeros(MODEL.shape, bool))
    assert np.array_equal(render(scan, nothing, factual, edited, "residual"), scan.data)


def test_a_latent_render_takes_the_decoded_image_and_keeps_the_rest(prepared):
    scan = textured()
    edited = slope(places(MODEL)) + 1
    out = render(scan, prepared, np.zeros_like(edited), edited, "latent")
    inside = prepared.native_mask
    expected = due(prepared) + bias() * SCALE
    assert np.abs(out - expected)[inside].max() < 1e-3 * SCALE
    assert np.array_equal(out[~inside], scan.data[~inside])


def test_no_voxel_falls_below_the_scans_own_range(prepared):
    factual = np.zeros(MODEL.shape, np.float32)
    darker = factual - 1
    for low in (0.0, -7.0):
        data = textured().data / 20
        data[8, 8, 8] = low
        out = render(scan_of(data), prepared, factual, darker, "residual")
        assert out.min() == low
        assert (out[prepared.native_mask] == low).sum() > 10


def test_a_warp_moves_the_scans_own_voxels_by_the_linear_part_of_the_affine(prepared, monkeypatch):
    """Shifts of some mm that grow through the template: the scan is read where the affine's turn
    and stretch carry them to."""

    def shift(points):
        return np.array([3.0, -2, 1])[:, None, None, None] + 0.05 * points

    def displacement(fixed, grid, moving, _):
        # From the counterfactual, which is brighter here, to the factual.
        sign = 1 if fixed.max() > moving.max() else -1
        return sign * np.moveaxis(shift(places(grid)), 0, -1).astype(np.float32)

    monkeypatch.setattr(registration, "displacement", displacement)
    # Several slabs.
    monkeypatch.setattr("cfgen.scan.render.SLAB_VOXELS", 250)
    scan = scan_of(slope(places(NATIVE)) * 1000 + 5000)
    factual = np.zeros(MODEL.shape, np.float32)
    out = render(scan, prepared, factual, factual + 1, "warp")
    carried = np.tensordot(TO_NATIVE[:3, :3], shift(places(NATIVE, np.linalg.inv(TO_NATIVE))), 1)
    moved = slope(places(NATIVE) + carried) * 1000 + 5000
    expected = np.where(prepared.native_mask, moved, scan.data)
    assert np.abs(out - expected).max() < 1
    assert np.abs(expected - scan.data).max() > 50


def test_an_empty_mask_is_refused():
    with pytest.raises(ImageError, match="the brain mask is empty"):
        prepare(scan_of(np.ones(NATIVE.shape)), np.zeros(NATIVE.shape, bool), Preprocess())


def test_the_scan_is_read_back_from_a_head_with_a_known_place_and_field(monkeypatch):
    """Registration and N4 are told: brightness at 1 is the percentile of the unbiased brain."""
    grid = Grid(
        (60, 66, 54), np.array([[3.0, 0, 0, -90], [0, 3, 0, -110], [0, 0, 3, -70], [0, 0, 0, 1]])
    )
    shift = np.eye(4)
    shift[:3, 3] = [4.0, -3, 5]
    points = places(grid, np.linalg.inv(shift))
    inside = ((points / np.array([60.0, 70, 55])[:, None, None, None]) ** 2).sum(0) < 1
    # Beyond the mask it goes on: a jump there would ring in the splines.
    own = (3 + slope(points)) * 100
    scan = Volume((own * np.exp(places(grid)[1] / 400)).astype(np.float32), grid.affine)
    seen = {}

    def register(template, brain):
        seen["brain"] = brain
        return shift

    def bias_field(data, mask, work, recipe):
        return (places(work)[1] / 400).astype(np.float32)

    monkeypatch.setattr(prepare_file, "affine_between", register)
    monkeypatch.setattr(registration, "log_bias_field", bias_field)
    ready = prepare(scan, inside, Preprocess())
    # What is registered is the brain alone, without its bias field, on the scan's own coarse grid.
    assert np.array_equal(seen["brain"].mask, inside)
    assert np.allclose(seen["brain"].data[inside], own[inside], rtol=1e-3)
    place = ((places(ready.grid) / np.array([60.0, 70, 55])[:, None, None, None]) ** 2).sum(0)
    assert ready.mask[place < 0.9].all()
    assert not ready.mask[place > 1.1].any()
    wanted = 3 + slope(places(ready.grid))
    top = np.percentile(wanted[ready.mask], 99.5)
    assert ready.scale == pytest.approx(100 * top, rel=1e-3)
    assert np.abs(ready.image - wanted / top)[ready.mask].max() < 2e-3
    assert (ready.image[~ready.mask] == 0).all()
    assert np.array_equal(ready.to_native, shift)
