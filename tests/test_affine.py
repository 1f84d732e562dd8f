"""The affine between two brains, against affines that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfgen.data.grid import Grid
from cfgen.space.affine import MaskedImage, affine_between
from cfgen.space.grids import resample
from cfgen.space.template import mni152, template_brain, template_mask

HALF_MM = 125.0
# Where the scanner has the head's middle.
CENTRE_MM = np.array([12.0, -25.0, 30.0])


def template() -> MaskedImage:
    data, grid = template_brain()
    return MaskedImage(data, template_mask(), grid)


def test_the_template_is_nilearns():
    """At 2 mm its splines give every second voxel of the 1 mm that it carries."""
    from nilearn import datasets

    for name, loader in (("t1", "template"), ("gm", "gm_template")):
        for spacing_mm in (1, 2):
            expected = getattr(datasets, f"load_mni152_{loader}")(resolution=spacing_mm)
            data, grid = mni152(name, spacing_mm)
            assert np.array_equal(grid.affine, expected.affine)
            assert np.abs(data - np.asarray(expected.dataobj)).max() < 1e-12


def turn(axis: int, degrees: float) -> np.ndarray:
    i, j = (k for k in range(3) if k != axis)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(3)
    matrix[[i, j, i, j], [i, j, j, i]] = c, c, -s, s
    return matrix


def scanner(spacing: tuple[float, ...], axes: np.ndarray | None = None) -> Grid:
    """A field of 250 mm around the head, its voxels along `axes` (3, 3)."""
    directions = np.eye(3) if axes is None else axes
    shape = [int(2 * HALF_MM / s) for s in spacing]
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = CENTRE_MM - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return Grid((shape[0], shape[1], shape[2]), affine)


def placed(linear: np.ndarray) -> np.ndarray:
    """Template mm to scanner mm."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear, np.add(CENTRE_MM, [3.3, 8.6, -5.2])
    return matrix


def moved(brain: MaskedImage, to_scanner: np.ndarray, grid: Grid) -> MaskedImage:
    """The brain as a scan of other brightness, with noise."""
    back = np.linalg.inv(to_scanner)
    data = 700 * resample(brain.data, brain.grid, grid, back, order=3)
    data += np.random.default_rng(0).normal(40, 20, grid.shape)
    mask = resample(brain.mask.astype(np.float32), brain.grid, grid, back) > 0.5
    return MaskedImage(data.astype(np.float32), mask, grid)


def errors_mm(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """How far every voxel of the template's brain is from where it should be."""
    brain = template()
    place = np.argwhere(brain.mask) @ brain.grid.affine[:3, :3].T + brain.grid.affine[:3, 3]
    apart = found - expected
    return np.asarray(np.linalg.norm(place @ apart[:3, :3].T + apart[:3, 3], axis=1))


MIXED = turn(0, 25) @ turn(1, 10) @ turn(2, -15) @ np.diag([0.9, 1.1, 0.85])
SHEARED = np.array([[1.0, 0.08, 0], [0, 1.1, -0.05], [0.06, 0, 0.95]])


@pytest.mark.parametrize(
    "linear",
    [
        np.eye(3),
        turn(0, -25),
        turn(0, 25),
        turn(1, 25),
        turn(2, -25),
        0.85 * np.eye(3),
        1.2 * np.eye(3),
        MIXED,
        SHEARED,
    ],
    ids=["upright", "nod-back", "nod", "tilt", "turn", "child", "large", "mixed", "sheared"],
)
def test_a_known_affine_is_recovered(linear):
    expected = placed(linear)
    found = affine_between(template(), moved(template(), expected, scanner((2, 2, 2))))
    assert errors_mm(found, expected).mean() < 0.4
    assert errors_mm(found, expected).max() < 0.6


def test_thick_oblique_slices_too():
    """Slices of 3 mm along axes of their own, turned by 20 degrees."""
    expected = placed(turn(0, -12) @ np.diag([1.05, 0.95, 1]))
    grid = scanner((1.0, 1.0, 3.0), turn(0, 20))
    found = affine_between(template(), moved(template(), expected, grid))
    assert errors_mm(found, expected).mean() < 0.5


@pytest.mark.parametrize("axes", [[1, 2, 0], [0, 1, 2]])
def test_left_stays_left_whatever_the_order_of_voxels(axes):
    """The template is the same on both sides: a lesion on the right tells them apart."""
    brain = template()
    data = brain.data.copy()
    at = np.rint(np.linalg.inv(brain.grid.affine) @ [35.0, -10, 20, 1])[:3].astype(int)
    data[tuple(slice(a - 5, a + 6) for a in at)] = 0
    expected = placed(turn(2, 15))
    # PSR and LAS: axes in another order, or mirrored.
    directions = np.eye(3)[:, axes] * ([-1, 1, 1])
    grid = scanner((2, 2, 2), directions)
    scan = moved(MaskedImage(data, brain.mask, brain.grid), expected, grid)
    found = affine_between(brain, scan)
    assert np.linalg.det(found[:3, :3]) > 0
    assert errors_mm(found, expected).mean() < 0.5


def test_the_same_matrix_to_the_bit_on_any_number_of_threads():
    scan = moved(template(), placed(MIXED), scanner((4, 4, 4)))
    threads = torch.get_num_threads()
    matrices = []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            matrices.append(affine_between(template(), scan))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(matrices[0], matrices[1])
    assert np.array_equal(matrices[1], matrices[2])


def test_brightness_in_other_units_changes_nothing():
    scan = moved(template(), placed(MIXED), scanner((4, 4, 4)))
    other = MaskedImage(3 * scan.data + 500, scan.mask, scan.grid)
    apart = errors_mm(affine_between(template(), other), affine_between(template(), scan))
    assert apart.max() < 0.05


def test_a_brain_of_one_brightness_is_placed_by_its_outline():
    scan = moved(template(), placed(MIXED), scanner((4, 4, 4)))
    flat = MaskedImage(np.full(scan.grid.shape, 7, np.float32), scan.mask, scan.grid)
    assert errors_mm(affine_between(template(), flat), placed(MIXED)).mean() < 2
