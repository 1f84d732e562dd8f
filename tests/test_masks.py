"""Edited masks: the ranking of PCGM's section 3.2, exact volumes, topology, no order effects."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from conftest import DATA, needs_data
from scipy import ndimage

from cfgen.causal.masks import SoftMaps, edit_masks, region_voxels, whole_targets
from cfgen.causal.partners import PARTNERS, in_turn, partners_of
from cfgen.causal.topology import is_simple, neighbour_offsets, pack, parity
from cfgen.data.parcellation import regions_of
from cfgen.errors import ImageError, UsageError

TABLE = "freesurfer"
WHITE, CSF = (2, 41), 24
LEFT_FRONTAL, RIGHT_FRONTAL = 1901, 2901
HIPPOCAMPUS, HORN = 17, 5


def invariants(mask: np.ndarray) -> tuple[int, int, int]:
    """26-components, cavities and handles; the last by the Euler number of the union of cubes."""
    mask = np.pad(mask, 2)
    pieces = int(ndimage.label(mask, np.ones((3, 3, 3)))[1])
    cavities = int(ndimage.label(~mask)[1]) - 1
    euler = 0
    for whole in itertools.product((False, True), repeat=3):
        cells = mask
        for axis, cube in enumerate(whole):
            if not cube:
                cells = np.logical_or(
                    cells.take(range(cells.shape[axis] - 1), axis),
                    cells.take(range(1, cells.shape[axis]), axis),
                )
        euler += (-1) ** sum(whole) * int(cells.sum())
    return pieces, cavities, pieces + cavities - euler


def ball(shape: tuple[int, int, int], radius: float, bumps: np.ndarray) -> np.ndarray:
    centre = (np.array(shape) - 1) / 2
    distance = np.sqrt(sum((x - c) ** 2 for x, c in zip(np.indices(shape), centre, strict=True)))
    return distance + bumps < radius


def brain(seed: int = 0, shape: tuple[int, int, int] = (44, 40, 42)) -> torch.Tensor:
    """Ventricle, white matter, a folded cortex of two lobes a side, fluid; a hippocampus with its
    horn on the left."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    folds = ndimage.gaussian_filter(noise, 1.8)
    folds *= 1.5 / folds.std()
    left = np.arange(shape[0])[:, None, None] < shape[0] / 2
    front = np.arange(shape[1])[None, :, None] > shape[1] / 2
    labels = np.zeros(shape, np.int32)
    labels[ball(shape, 18.5, 0 * folds)] = CSF
    cortex = np.broadcast_to(np.where(front, 1901, 1902) + np.where(left, 0, 1000), shape)
    inside = ball(shape, 15.5, folds)
    labels[inside] = cortex[inside]
    white = ball(shape, 12.5, folds)
    labels[white] = np.broadcast_to(np.where(left, *WHITE), shape)[white]
    ventricle = ball(shape, 5, 0.3 * folds)
    labels[ventricle] = np.broadcast_to(np.where(left, 4, 43), shape)[ventricle]
    labels[12:16, 16:26, 14:17] = HIPPOCAMPUS
    labels[12:16, 16:26, 17:19] = HORN
    return torch.from_numpy(labels)


def soft(labels: torch.Tensor, seed: int = 0) -> SoftMaps:
    """Smoothed labels with noise, that sum to one over all regions."""
    places = regions_of(TABLE)
    regions = sorted({places[c] for c in labels.unique().tolist()})
    draw = np.random.default_rng(seed)
    maps = []
    for region in regions:
        codes = [c for c, r in places.items() if r == region]
        here = np.isin(labels.numpy(), codes).astype(np.float32)
        noise = 1 + 0.2 * draw.random(here.shape)
        maps.append(ndimage.gaussian_filter(here, 1.0) * noise)
    values = torch.from_numpy(np.stack(maps)).float()
    return SoftMaps(values / values.sum(0), tuple(frozenset({r}) for r in regions))


def edited(labels, targets, maps=None, **how):
    how = {"table_name": TABLE, "voxel_mm3": 1.0} | how
    return edit_masks(labels, soft(labels) if maps is None else maps, targets, **how)


def targets_by(labels: torch.Tensor, factors: dict[str, float]) -> dict[tuple[str, str], float]:
    volumes = region_voxels(labels, TABLE)
    return {r: n * factors[r[0]] for r, n in volumes.items() if r[0] in factors}


FACTORS = {"cortex_frontal": 0.87, "cortex_parietal": 1.04, "lateral_ventricle": 1.3}


def test_a_simple_point_keeps_pieces_cavities_and_handles():
    draw = np.random.default_rng(0)
    simple = 0
    for _ in range(1500):
        block = draw.random((3, 3, 3)) < draw.choice([0.2, 0.5, 0.8])
        without, with_it = block.copy(), block.copy()
        without[1, 1, 1], with_it[1, 1, 1] = False, True
        # Bit x + 3 y + 9 z: the first axis is the fastest.
        bits = pack(torch.from_numpy(block.ravel(order="F").copy())[None])
        expected = invariants(without) == invariants(with_it)
        assert bool(is_simple(bits)) == expected
        simple += expected
    assert 300 < simple < 1200


def test_voxels_of_one_parity_are_no_neighbours():
    shape = (5, 6, 7)
    inner = torch.from_numpy(np.pad(np.ones((3, 4, 5), bool), 1)).flatten().nonzero()[:, 0]
    around = inner[:, None] + neighbour_offsets(shape)
    same = parity(around.flatten(), shape).reshape(around.shape) == parity(inner, shape)[:, None]
    assert same.sum() == len(inner)
    assert around[:, 13].equal(inner)


def slab() -> torch.Tensor:
    """White matter, three layers of cortex, four of fluid; flat, so that all is simple."""
    labels = torch.zeros(12, 12, 12, dtype=torch.int32)
    labels[1:-1, 1:-1, 1:3] = 2
    labels[1:-1, 1:-1, 3:6] = LEFT_FRONTAL
    labels[1:-1, 1:-1, 6:10] = CSF
    return labels


@pytest.mark.parametrize("d", [37, -37])
def test_the_voxels_that_change_are_those_of_the_papers_ranking(d):
    labels = slab()
    values = torch.rand(3, 12, 12, 12, generator=torch.Generator().manual_seed(1))
    values /= values.sum(0)
    regions = [("cortex_frontal", "left"), ("csf", "both"), ("cerebral_wm", "left")]
    maps = SoftMaps(values, tuple(frozenset({r}) for r in regions))
    n = int((labels == LEFT_FRONTAL).sum())
    result = edited(labels, {regions[0]: float(n + d)}, maps)
    layer, other = (6, CSF) if d > 0 else (5, LEFT_FRONTAL)
    score = (values[0] - values[1])[:, :, layer] * (1 if d > 0 else -1)
    score[labels[:, :, layer] != other] = -9
    best = torch.zeros(144, dtype=torch.bool)
    best[score.flatten().argsort(descending=True)[: abs(d)]] = True
    changed = result.labels != labels
    assert changed[:, :, layer].flatten().equal(best)
    assert changed.sum() == abs(d)


def test_the_band_is_widened_when_d_exceeds_the_boundary():
    labels = slab()
    n = int((labels == LEFT_FRONTAL).sum())
    result = edited(labels, {("cortex_frontal", "left"): float(n + 130)})
    (edit,) = result.edits
    assert (edit.boundary, edit.rings, edit.after) == (100, 2, n + 130)
    assert (result.labels[:, :, 6] == LEFT_FRONTAL).sum() > 60


@pytest.mark.parametrize("seed", [0, 1])
def test_volumes_topology_and_white_matter(seed):
    labels = brain(seed)
    wanted = targets_by(labels, {"cortex_frontal": 0.88, "cortex_parietal": 1.05})
    result = edited(labels, wanted)
    assert max(abs(e.error) for e in result.edits) <= 0.5
    after = region_voxels(result.labels, TABLE)
    assert all(abs(after[r] - v) <= 0.5 for r, v in wanted.items())
    for code in WHITE:
        assert (result.labels == code).equal(labels == code)
    codes = {c for e in result.edits for c in (1901, 1902, 2901, 2902) if e.after != e.before}
    assert len(codes) == 4
    for code in codes:
        before, now = (np.asarray(x == code) for x in (labels, result.labels))
        assert invariants(now) == invariants(before)
        # Only cortex and fluid change hands.
        assert set(labels[torch.from_numpy(before != now)].tolist()) <= {code, CSF}


def test_no_order_effects():
    labels, maps = brain(), soft(brain())
    wanted = targets_by(labels, FACTORS | {"hippocampus": 0.9})
    first = edited(labels, wanted, maps)
    for order in (reversed(wanted.items()), sorted(wanted.items(), key=lambda item: item[1])):
        again = edited(labels, dict(order), maps)
        assert again.labels.numpy().tobytes() == first.labels.numpy().tobytes()
        assert (
            again.posteriors.values.numpy().tobytes() == first.posteriors.values.numpy().tobytes()
        )


def test_sides_are_apart():
    labels = brain()
    n = region_voxels(labels, TABLE)["cortex_frontal", "left"]
    result = edited(labels, {("cortex_frontal", "left"): n * 0.9})
    right = np.arange(44) >= 24
    assert result.labels[torch.from_numpy(right)].equal(labels[torch.from_numpy(right)])


def test_nothing_to_do_changes_nothing():
    labels, maps = brain(), soft(brain())
    result = edited(labels, targets_by(labels, dict.fromkeys(FACTORS, 1.0)), maps)
    assert result.labels.equal(labels)
    assert result.posteriors.values.equal(maps.values)
    assert result.labels.dtype == labels.dtype


def test_soft_maps_gain_what_masks_gain():
    labels, maps = brain(), soft(brain())
    result = edited(labels, targets_by(labels, FACTORS), maps)
    values = result.posteriors.values
    torch.testing.assert_close(values.sum(0), torch.ones(labels.shape), atol=1e-5, rtol=0)
    assert values.min() >= 0
    for e in result.edits:
        assert e.soft_change == pytest.approx(e.after - e.before, abs=0.1)
    # Head and white matter beside the cortex have no part in an edit of the cortex alone.
    alone = edited(labels, targets_by(labels, {"cortex_frontal": 0.9}), maps)
    white = maps.of(("cerebral_wm", "left"))
    assert alone.posteriors.values[white].equal(maps.values[white])
    far = torch.from_numpy(ndimage.distance_transform_edt(labels != CSF) > 6)
    assert alone.posteriors.values[:, far].equal(maps.values[:, far])


def test_horn_and_hippocampus_both_reach_their_volumes():
    labels = brain()
    n = region_voxels(labels, TABLE)
    hippocampus, horn = ("hippocampus", "left"), ("inferior_lateral_ventricle", "left")
    # The hippocampus gives 20 voxels to the horn, which is to gain 8: it gives 12 to white matter.
    result = edited(labels, {horn: n[horn] + 8.0, hippocampus: n[hippocampus] - 20.0})
    assert [e.after - e.before for e in result.edits] == [-20, 8]
    before, after = n, region_voxels(result.labels, TABLE)
    assert after["cerebral_wm", "left"] - before["cerebral_wm", "left"] == 12


def test_a_tissue_exchanges_with_the_fluid_beside_it_not_the_fluid_with_it():
    present = [("thalamus", "left"), ("third_ventricle", "both"), ("other_brain", "left")]
    chosen = partners_of(present[:2], present)
    assert chosen[present[0]] == (present[1],)
    assert chosen[present[1]] == (present[2],)
    assert in_turn(chosen) == [[present[0]], [present[1]]]
    with pytest.raises(UsageError, match="exchange with each other"):
        in_turn({present[0]: (present[2],), present[2]: (present[0],)})


def test_another_neighbour_can_be_named():
    labels = brain()
    n = region_voxels(labels, TABLE)
    region = ("cortex_frontal", "left")
    partners = PARTNERS | {"cortex_frontal": ("cerebral_wm",)}
    result = edited(labels, {region: n[region] - 50.0}, partners=partners)
    after = region_voxels(result.labels, TABLE)
    assert after["cerebral_wm", "left"] == n["cerebral_wm", "left"] + 50
    assert (result.labels == CSF).equal(labels == CSF)


def test_targets_of_both_sides_and_of_the_cortex_are_shared_out():
    volumes = {("cortex_frontal", "left"): 60.0, ("cortex_frontal", "right"): 40.0}
    assert whole_targets({("cortex", "both"): 90.0}, volumes) == pytest.approx(
        {("cortex_frontal", "left"): 54.0, ("cortex_frontal", "right"): 36.0}
    )
    with pytest.raises(UsageError, match="left cortex_frontal twice"):
        whole_targets({("cortex", "left"): 54.0, ("cortex_frontal", "both"): 90.0}, volumes)
    with pytest.raises(UsageError, match="no left amygdala; expected one of left cortex_frontal"):
        whole_targets({("amygdala", "left"): 9.0}, volumes)


def test_a_target_that_cannot_be_met_says_how_far_it_got():
    labels = slab()
    labels[:, :, 7:] = 0
    region = ("cortex_frontal", "left")
    n = int((labels == LEFT_FRONTAL).sum())
    with pytest.raises(UsageError, match="do not fit in the skull; expected at most the 100 mm3"):
        edited(labels, {region: n + 150.0})
    sheet = slab()
    sheet[:, :, 4:6] = CSF
    sheet[5, 5, 3] = CSF
    # A sheet one voxel thick with a hole: it can shrink at its rims alone, and last as a ring.
    with pytest.raises(UsageError, match=r"from 99 to \d+ mm3 of 2 .*--best-effort"):
        edited(sheet, {region: 2.0})
    least = edited(sheet, {region: 2.0}, best_effort=True)
    mask = np.asarray(least.labels == LEFT_FRONTAL)
    assert least.edits[0].after == mask.sum() > 2
    assert invariants(mask) == (1, 0, 1)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda x: x.masked_fill(x == CSF, 0), ImageError, "could exchange.*expected csf"),
        (lambda x: torch.where((x == CSF) & (x.cumsum(2) > 0), 516, x), ImageError, "csf"),
    ],
)
def test_labels_without_fluid_are_refused(change, error, said):
    labels = slab()
    region = ("cortex_frontal", "left")
    with pytest.raises(error, match=said):
        edited(change(labels), {region: 280.0})


def test_fluid_that_is_not_beside_the_region_is_no_fluid():
    labels = slab()
    labels[:, :, 6] = 516
    region = ("cortex_frontal", "left")
    with pytest.raises(ImageError, match="no csf beside left cortex_frontal"):
        edited(labels, {region: 280.0})


def test_a_region_cannot_vanish_and_a_channel_must_be_there():
    labels = slab()
    region = ("cortex_frontal", "left")
    with pytest.raises(UsageError, match="cannot vanish"):
        edited(labels, {region: 0.0})
    only = SoftMaps(torch.ones(1, *labels.shape), (frozenset({region}),))
    with pytest.raises(ImageError, match="no channel of csf"):
        edited(labels, {region: 280.0}, only)


def test_a_new_voxel_has_the_code_of_the_gyrus_beside_it():
    labels = slab()
    # Two gyri of the frontal lobe, of FreeSurfer's parcellation.
    labels[:6][labels[:6] == LEFT_FRONTAL] = 1003
    labels[6:][labels[6:] == LEFT_FRONTAL] = 1028
    region = ("cortex_frontal", "left")
    result = edited(labels, {region: 300.0 + 90.0})
    new = (result.labels != labels).nonzero()
    assert len(new) == 90
    for i, j, k in new.tolist():
        if i not in (5, 6):
            assert int(result.labels[i, j, k]) == (1003 if i < 6 else 1028)


@needs_data
def test_a_real_parcellation_reaches_its_volumes():
    import nibabel as nib

    data = np.asarray(nib.load(DATA / "ixi" / "labels" / "IXI048_dlmuse.nii.gz").dataobj)
    labels = torch.from_numpy(data.astype(np.int32))
    places = regions_of("dlmuse")
    volumes = region_voxels(labels, "dlmuse")
    factors = {"lateral_ventricle": 1.4, "hippocampus": 0.9, "cortex_temporal": 0.93}
    wanted = {r: n * 8 * factors[r[0]] for r, n in volumes.items() if r[0] in factors}
    names = sorted(volumes)
    maps = []
    for region in names:
        codes = [c for c, r in places.items() if r == region]
        maps.append(ndimage.gaussian_filter(np.isin(data, codes).astype(np.float32), 0.7))
    posteriors = SoftMaps(torch.from_numpy(np.stack(maps)), tuple(frozenset({r}) for r in names))
    result = edit_masks(labels, posteriors, wanted, table_name="dlmuse", voxel_mm3=8.0)
    assert max(abs(e.error) for e in result.edits) <= 0.5
    assert set(result.labels.unique().tolist()) <= set(labels.unique().tolist())
