"""Native scans whose tissue moves: geometry of any grid, noise in place, fields that ITK reads."""

from __future__ import annotations

from dataclasses import replace

import ants
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.spatial.transform import Rotation

from cfgen.data.volume import Grid, Volume
from cfgen.scan.field import displacement, log_jacobian, write_field
from cfgen.scan.moved import Movement, move, noise_sd, scaled, source_of, without_noise

# Turned, anisotropic, and posterior-superior-right: no axis is where one would guess it.
SHAPE = (60, 52, 56)
AXES = Rotation.from_euler("xyz", [8, -5, 6], degrees=True).as_matrix()
AFFINE = np.eye(4)
AFFINE[:3, :3] = AXES @ np.array([[0, 0, 1.0], [-1, 0, 0], [0, 1, 0]]) @ np.diag([1.2, 1.6, 1.4])
AFFINE[:3, 3] = -AFFINE[:3, :3] @ (np.array(SHAPE) - 1) / 2
GRID = Grid(
    (50, 56, 48), np.array([[2.0, 0, 0, -50], [0, 2, 0, -56], [0, 0, 2, -48], [0, 0, 0, 1]])
)


def world(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def picture(at: np.ndarray) -> np.ndarray:
    """Smooth, and different in every direction: (..., 3) mm -> (...)."""
    x, y, z = np.moveaxis(at, -1, 0)
    wave = np.sin(x / 9) + np.cos(y / 11) + np.sin(z / 8 + x / 20)
    return (500 + 100 * wave).astype(np.float32)


def movement(shift: np.ndarray, **maps: torch.Tensor) -> Movement:
    """(D, H, W, 3) mm of the grid as a movement that adds and purifies nothing."""
    nothing = torch.zeros(GRID.shape)
    none = {"opened": nothing, "darker": nothing, "purified": nothing, "fluid": nothing}
    given = none | maps
    field = torch.from_numpy(np.moveaxis(shift, -1, 0).copy()).float()
    return Movement(field, grid=GRID, **given)


WHITE = torch.ones(GRID.shape)


def moved_by(scan: Volume, mask: np.ndarray, movement: Movement, *, keep_noise: bool) -> np.ndarray:
    """A scan that is white matter all over, moved."""
    return move(source_of(scan, mask, WHITE, GRID, np.inf if keep_noise else 0.0), movement)


@pytest.fixture(scope="module")
def scan() -> Volume:
    return Volume(picture(world(AFFINE, SHAPE)), AFFINE)


@pytest.fixture(scope="module")
def mask(scan: Volume) -> np.ndarray:
    return np.linalg.norm(world(AFFINE, SHAPE), axis=-1) < 28


SHIFT = np.array([3.0, -2.0, 1.5])


def test_a_voxel_shows_what_lay_where_the_displacement_points(scan, mask):
    moved = moved_by(
        scan, mask, movement(np.broadcast_to(SHIFT, (*GRID.shape, 3))), keep_noise=False
    )
    expected = picture(world(AFFINE, SHAPE) + SHIFT)
    assert np.abs(moved - expected)[mask].max() < 1.0
    assert np.abs(scan.data - expected)[mask].max() > 30
    np.testing.assert_array_equal(moved[~mask], scan.data[~mask])


def test_where_nothing_moves_nothing_changes(scan, mask):
    shift = np.zeros((*GRID.shape, 3))
    np.testing.assert_array_equal(moved_by(scan, mask, movement(shift), keep_noise=True), scan.data)


def test_noise_stays_where_it_was(scan, mask):
    noise = np.random.default_rng(0).normal(0, 4, SHAPE).astype(np.float32)
    # Of less contrast: the smoother takes a steep slope for an edge, and moves its noise too.
    noisy = scan.like(scan.data / 10 + noise)
    shift = movement(np.broadcast_to(SHIFT, (*GRID.shape, 3)))
    assert noise_sd(noisy, mask, WHITE, GRID) == pytest.approx(4, rel=0.1)
    expected = picture(world(AFFINE, SHAPE) + SHIFT) / 10
    left = moved_by(noisy, mask, shift, keep_noise=True) - expected
    moved = moved_by(noisy, mask, shift, keep_noise=False) - expected
    assert np.corrcoef(left[mask], noise[mask])[0, 1] > 0.9
    assert abs(np.corrcoef(moved[mask], noise[mask])[0, 1]) < 0.2


def test_edges_are_not_noise():
    step = np.zeros((20, 20, 20), np.float32)
    step[10:] = 100
    np.testing.assert_allclose(without_noise(step, 6.0), step, atol=2)


def test_fluid_takes_its_part(scan, mask):
    maps = {"purified": torch.full(GRID.shape, 0.25), "fluid": torch.full(GRID.shape, 100.0)}
    shift = np.broadcast_to(SHIFT, (*GRID.shape, 3))
    plain = moved_by(scan, mask, movement(shift), keep_noise=False)
    purer = moved_by(scan, mask, movement(shift, **maps), keep_noise=False)
    np.testing.assert_allclose(purer[mask], (0.75 * plain + 25)[mask], atol=0.1)


def test_an_empty_background_of_another_value_is_not_pulled_in(scan, mask):
    data = np.where(mask, scan.data, np.float32(-1024))
    shift = movement(np.broadcast_to(SHIFT, (*GRID.shape, 3)))
    moved = moved_by(scan.like(data), mask, shift, keep_noise=True)
    np.testing.assert_array_equal(moved[~mask], -1024)
    assert moved[mask].min() >= 0


def test_a_stripped_brain_grows_out_of_its_mask_no_further_than_it_may(scan, mask):
    data = np.where(mask, scan.data, np.float32(-1024))
    at = world(GRID.affine, GRID.shape)
    shift = replace(movement(-0.1 * at), out_mm=4.0)
    grown = moved_by(scan.like(data), mask, shift, keep_noise=True) > -1024
    assert (grown | mask == grown).all()
    # What came from within 28 mm of the middle lies within 31 mm of it.
    distance = np.linalg.norm(world(AFFINE, SHAPE), axis=-1)
    assert grown[distance < 30].all()
    assert not grown[distance > 32].any()
    still = moved_by(scan.like(data), mask, replace(shift, out_mm=0.0), keep_noise=True)
    np.testing.assert_array_equal(still > -1024, mask)


def bulge(at: np.ndarray) -> np.ndarray:
    """A displacement (..., 3) mm: what lies around a point was smaller."""
    offset = at - np.array([5.0, -4.0, 3.0])
    return -0.3 * offset * np.exp(-(offset**2).sum(-1, keepdims=True) / 200)


def test_itk_and_ants_read_the_field_as_it_was_meant(scan, mask, tmp_path):
    shift = movement(bulge(world(GRID.affine, GRID.shape)))
    field = displacement(scan, mask, shift)
    assert (field[~mask] == 0).all()
    path, jacobian = tmp_path / "field.nii.gz", tmp_path / "jacobian.nii.gz"
    write_field(scan, field, path, jacobian, "SYNTHETIC")
    transform = sitk.DisplacementFieldTransform(
        sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkVectorFloat64)
    )
    lps = np.diag([-1.0, -1.0, 1.0])
    for index in np.argwhere(mask)[::9000]:
        point = AFFINE[:3, :3] @ index + AFFINE[:3, 3]
        seen = lps @ np.array(transform.TransformPoint((lps @ point).tolist()))
        np.testing.assert_allclose(seen, point + field[tuple(index)], atol=1e-3)
    nib.save(nib.Nifti1Image(scan.data, AFFINE), tmp_path / "scan.nii.gz")
    fixed = ants.image_read(str(tmp_path / "scan.nii.gz"))
    pulled = ants.apply_transforms(fixed, fixed, [str(path)]).numpy()
    ours = moved_by(scan, mask, shift, keep_noise=False)
    inner = np.linalg.norm(world(AFFINE, SHAPE), axis=-1) < 22
    assert np.abs(pulled - ours)[inner].max() < 3
    theirs = ants.create_jacobian_determinant_image(fixed, str(path), do_log=True).numpy()
    log = nib.load(jacobian).get_fdata()
    assert np.abs(theirs - log)[inner].max() < 0.02
    # What was enlarged came from less.
    at = np.rint(np.linalg.solve(AFFINE, [5.0, -4.0, 3.0, 1.0])[:3]).astype(int)
    assert log[tuple(at)] == pytest.approx(3 * np.log(0.7), abs=0.1)


def test_the_log_jacobian_of_a_scaling_is_known():
    grid = Grid(SHAPE, AFFINE)
    field = (0.1 * world(AFFINE, SHAPE)).astype(np.float32)
    np.testing.assert_allclose(log_jacobian(field, grid), 3 * np.log(1.1), atol=1e-4)


def test_a_head_is_scaled_about_its_brain(scan, mask):
    larger = scaled(mask.astype(np.float32), mask, 1.05)
    assert larger.sum() / mask.sum() == pytest.approx(1.05**3, rel=0.01)
    centre = np.argwhere(mask).mean(0)
    np.testing.assert_allclose(np.argwhere(larger > 0.5).mean(0), centre, atol=0.1)
