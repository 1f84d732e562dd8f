"""The segmenter's classes, its loss, its training images, and labels on the scan's own grid."""

from __future__ import annotations

import math

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cfgen.config import SEGMENTER_FIT
from cfgen.data.parcellation import (
    LEFT,
    NAMES,
    NOT_BRAIN,
    RIGHT,
    SETS,
    STRUCTURES,
    membership,
    read_as_sets,
)
from cfgen.data.regions import table
from cfgen.data.volume import Grid, Volume
from cfgen.errors import ManifestError
from cfgen.jobs.train_segmenter import train_segmenter
from cfgen.measure.segmenter import Posteriors, _counted, _on_scan, _volumes, posteriors
from cfgen.nets.segmenter import Segmenter, SegmenterConfig
from cfgen.space.sampling import sample
from cfgen.train.painting import (
    SYNTHESIS,
    acquire,
    nearest,
    paint,
    random_points,
    strip,
    swap_sides,
)
from cfgen.train.segmenter import (
    LabelledScan,
    LabelMap,
    _cells,
    meet_volumes,
    random_example,
    set_loss,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


SMALL = SegmenterConfig(classes=5, channels=(8, 8, 8), norm_groups=4)


@pytest.mark.parametrize("name", ["freesurfer", "dlmuse"])
def test_every_label_is_read_as_its_own_group(name):
    known = table(name)
    codes = np.array(sorted(known))
    sets, sides = read_as_sets(codes.reshape(1, 1, -1), name, whole_head=True)
    for code, number, side in zip(codes.tolist(), sets.ravel(), sides.ravel(), strict=True):
        groups = {STRUCTURES[i].group for i in SETS[number]}
        if known[code].group == "cortex":
            assert groups == {s.group for s in STRUCTURES if s.group.startswith("cortex_")}
        else:
            assert groups == {known[code].group}
        assert side == {"left": LEFT, "right": RIGHT, "both": 0}[known[code].side]


def test_zero_is_air_in_a_whole_head_and_anything_but_brain_otherwise():
    zero = np.zeros((1, 1, 1), int)
    assert SETS[read_as_sets(zero, "freesurfer", whole_head=True)[0].item()] == (0,)
    assert SETS[read_as_sets(zero, "dlmuse", whole_head=False)[0].item()] == NOT_BRAIN


def test_written_codes_are_of_the_right_side():
    """Codes that FreeSurfer has are its own structures, and no two structures share one."""
    known = table("freesurfer")
    codes = [c for s in STRUCTURES for c in {s.left, s.right}]
    assert len(set(codes)) == len(codes)
    for s in STRUCTURES:
        for code, side in ((s.left, "left"), (s.right, "right")):
            if s.left != s.right:
                assert known[code].side == side
            assert known[code].group == s.group


def test_loss_of_plain_classes_is_cross_entropy_and_dice():
    scores, target = torch.randn(len(NAMES), 400), torch.randint(0, 5, (400,))
    entropy, dice = set_loss(scores, target, torch.from_numpy(membership()))
    assert entropy.item() == pytest.approx(F.cross_entropy(scores.T, target).item(), rel=1e-4)
    p = scores.softmax(0)
    expected = []
    for c in range(5):
        true = (target == c).float()
        expected.append((2 * (p[c] * true).sum() + 1) / (p[c].sum() + true.sum() + 1))
    assert dice.item() == pytest.approx(1 - torch.stack(expected).mean().item(), rel=1e-4)


def test_balance_one_is_the_mean_of_the_sets_own_means():
    scores, target = torch.randn(len(NAMES), 400), (torch.rand(400) < 0.02).long()
    entropy, _ = set_loss(scores, target, torch.from_numpy(membership()), balance=1.0)
    parts = [F.cross_entropy(scores.T[target == c], target[target == c]) for c in (0, 1)]
    assert entropy.item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-4)


def test_a_label_that_may_be_several_classes_asks_for_their_sum_alone():
    member = torch.from_numpy(membership())
    lobes = next(n for n, s in enumerate(SETS) if len(s) == 6)
    scores = torch.zeros(len(NAMES), 10)
    scores[list(SETS[lobes])] = 3.0
    target = torch.full((10,), lobes)
    entropy, _ = set_loss(scores, target, member)
    share = 6 * math.exp(3) / (6 * math.exp(3) + len(NAMES) - 6)
    assert entropy.item() == pytest.approx(-math.log(share), rel=1e-4)
    # Which of the lobes it is makes no difference.
    scores[SETS[lobes][0]] += math.log(6)
    scores[list(SETS[lobes][1:])] = -30
    assert set_loss(scores, target, member)[0].item() == pytest.approx(entropy.item(), rel=1e-4)


def test_scores_at_some_places_are_those_of_the_whole():
    net = Segmenter(SMALL)
    x = torch.rand(1, 1, 16, 24, 16)
    with torch.no_grad():
        scores, side = net(x)
        places = torch.tensor([0, 7, 500])
        some, some_side = net.scores_at(net.features(x)[0], places)
    for c in range(SMALL.classes):
        assert torch.allclose(_cells(scores[0, c], 2)[places].flatten(), some[c], atol=1e-5)
    assert torch.allclose(_cells(side[0], 2)[places].flatten(), some_side, atol=1e-5)


def test_images_of_any_size_keep_it():
    """What is not there to the size that halves is air at the far ends."""
    net, x = Segmenter(SMALL), torch.rand(1, 1, 13, 17, 9)
    with torch.no_grad():
        scores, side = net(x)
        whole, whole_side = net(F.pad(x, (0, 7, 0, 7, 0, 3)))
    assert scores.shape == (1, 5, 13, 17, 9)
    assert torch.allclose(scores, whole[:, :, :13, :17, :9], atol=1e-6)
    assert torch.allclose(side, whole_side[:, :13, :17, :9], atol=1e-6)


def test_points_without_change_are_the_crop_itself():
    still = SYNTHESIS.__class__(
        crop=(4, 6, 8), rotation_degrees=0, log_scale=0, shear=0, shift_voxels=0, elastic_voxels=0
    )
    volume = torch.arange(8 * 10 * 12).reshape(8, 10, 12)
    centre = (torch.tensor([8.0, 10.0, 12.0]) - 1) / 2
    for seed in range(8):
        points, mirrored = random_points(centre, 1.0, torch.Generator().manual_seed(seed), still)
        expected = volume[2:6, 2:8, 2:10]
        expected = expected.flip(0) if mirrored else expected
        assert torch.equal(nearest(volume, points), expected)
        assert torch.allclose(
            sample(volume.float()[None], points, "zeros")[0], expected.float(), atol=1e-3
        )


def test_outside_the_source_is_air():
    points = torch.tensor([[-1.0, 0, 0], [0, 0, 0], [2.6, 0, 0]])
    assert nearest(torch.ones(3, 1, 1), points).tolist() == [0, 1, 0]


def test_paint_gives_each_tissue_one_brightness():
    tissues = torch.randint(0, 4, (10, 10, 10), dtype=torch.uint8)
    calm = SYNTHESIS.__class__(tissue_noise=0.0)
    image = paint(tissues, 4, torch.Generator().manual_seed(1), calm)
    assert all(len(image[tissues == n].unique()) == 1 for n in range(4))


def test_a_mirrored_brain_has_its_sides_swapped():
    sides = torch.tensor([0, LEFT, RIGHT], dtype=torch.uint8)
    assert swap_sides(sides).tolist() == [0, RIGHT, LEFT]
    # A head whose right half alone is bright: after every draw bright is RIGHT where it is not
    # mirrored, and LEFT where it is; the label follows the anatomy, not the array.
    image = torch.zeros(40, 48, 48)
    image[20:] = 1.0
    side = torch.full((40, 48, 48), LEFT, dtype=torch.uint8)
    side[20:] = RIGHT
    scan = LabelledScan(image, torch.full((40, 48, 48), 18, dtype=torch.uint8), side, 2.0)
    calm = SYNTHESIS.__class__(
        crop=(16, 16, 16), shift_voxels=0.0, rotation_degrees=0, strip_probability=0, log_bias=0
    )
    seen = set()
    for seed in range(12):
        example = random_example(scan, torch.Generator().manual_seed(seed), calm)
        first = example.sides[0, 8, 8].item()
        # x grows to the right in every training image, mirrored or not.
        assert first == LEFT
        seen.add(bool(example.image[0, 8, 8] > example.image[-1, 8, 8]))
    assert seen == {True, False}


def test_stripping_leaves_the_brain_and_air():
    sets = torch.full((12, 12, 12), SETS.index(NOT_BRAIN), dtype=torch.uint8)
    sets[4:8, 4:8, 4:8] = 18
    image, left = strip(torch.ones(12, 12, 12), sets, torch.Generator().manual_seed(0))
    assert (image[4:8, 4:8, 4:8] == 1).all()
    assert image[0, 0, 0] == 0
    assert left[0, 0, 0] == 0
    assert (left[4:8, 4:8, 4:8] == 18).all()


def test_examples_are_fixed_by_their_generator_and_in_range():
    tissues = torch.randint(0, 5, (30, 30, 30), dtype=torch.uint8)
    whole = LabelMap(tissues, 5, tissues, torch.zeros_like(tissues), 1.0)
    options = SYNTHESIS.__class__(crop=(16, 16, 16))
    for seed in range(6):
        one, two = (
            random_example(whole, torch.Generator().manual_seed(seed), options) for _ in range(2)
        )
        assert torch.equal(one.image, two.image)
        assert one.image.min() >= 0
        assert one.image.max() <= 1
        assert one.image.isfinite().all()
    assert acquire(torch.zeros(8, 8, 8), torch.Generator(), SYNTHESIS).isfinite().all()


class Threshold(torch.nn.Module):
    """White matter where a ramp is above 0.3, thalamus where it is above 0.8; nothing learned."""

    config = SegmenterConfig(len(NAMES), pack=1)

    def __init__(self):
        super().__init__()
        self.conv_out = torch.nn.Conv3d(1, len(NAMES) + 1, 1)
        with torch.no_grad():
            self.conv_out.weight.zero_()
            self.conv_out.bias.fill_(-30)
            for name, slope, offset in (
                ("background", 0.0, 0.0),
                ("cerebral_wm", 10.0, -3.0),
                ("thalamus", 30.0, -19.0),
            ):
                self.conv_out.weight[NAMES.index(name)] = slope
                self.conv_out.bias[NAMES.index(name)] = offset

    def forward(self, x):
        out = self.conv_out(x)
        return out[:, :-1], out[:, -1]


def test_scores_are_shifted_until_volumes_are_met():
    """The labels' thresholds are 0.4 and 0.7: each volume is met to a slice."""
    ramp = torch.linspace(0, 1, 40)[:, None, None].expand(40, 48, 48).contiguous()
    labels = torch.zeros(40, 48, 48, dtype=torch.uint8)
    labels[ramp > 0.4] = NAMES.index("cerebral_wm")
    labels[ramp > 0.7] = NAMES.index("thalamus")
    net = Threshold()
    cpu = torch.device("cpu")
    meet_volumes(net, [LabelledScan(ramp, labels, labels * 0, 2.0)], cpu, rounds=30)
    seen = posteriors(net, Volume(ramp.numpy(), np.diag([2.0, 2, 2, 1])), cpu)
    found = seen.classes.argmax(0)
    for name in ("cerebral_wm", "thalamus"):
        expected = int((labels == NAMES.index(name)).sum())
        assert int((found == NAMES.index(name)).sum()) == pytest.approx(expected, rel=0.1)


def test_figures_need_labelled_scans_that_are_kept_out(tmp_path, tiny_bundle):
    for name in ("a", "a_labels", "b"):
        (tmp_path / f"{name}.nii").touch()
    manifest, new = tmp_path / "m.csv", tmp_path / "new"
    manifest.write_text(
        "subject,age,sex,split,image,labels\na,40,F,train,a.nii,a_labels.nii\nb,50,M,val,b.nii,\n"
    )
    with pytest.raises(ManifestError, match="no row with labels has split 'val'"):
        train_segmenter(manifest, tmp_path, tiny_bundle.path, new, SEGMENTER_FIT, "cpu")
    assert not new.exists()


def test_a_mirrored_head_has_mirrored_regions():
    """Of a network that sees every voxel alike: where it packs them may be another voxel."""
    torch.manual_seed(0)
    net = Segmenter(SegmenterConfig(len(NAMES), (8,), pack=1, norm_groups=4)).eval()
    data = np.random.default_rng(0).random((24, 24, 16)).astype(np.float32)
    affine = np.diag([2.0, 2, 2, 1])
    found = posteriors(net, Volume(data, affine), torch.device("cpu"))
    flipped = posteriors(net, Volume(data[::-1].copy(), affine), torch.device("cpu"))
    assert torch.allclose(found.classes.flip(1), flipped.classes, atol=2e-2)
    assert torch.allclose(found.left.flip(0), 1 - flipped.left, atol=2e-2)


def halves(shape=(40, 44, 36)):
    """A ball of white matter on a 2 mm upright grid, left where x < 0."""
    grid = Grid(shape, np.diag([2.0, 2, 2, 1]) + np.array([[0, 0, 0, -41.0]] * 3 + [[0.0] * 4]))
    index = np.indices(shape).reshape(3, -1)
    world = grid.affine[:3, :3] @ index + grid.affine[:3, 3:]
    radius = np.sqrt(((world - np.array([[0], [2], [-4]])) ** 2).sum(0)).reshape(shape)
    inside = torch.from_numpy(1 / (1 + np.exp((radius - 30) / 0.5))).float()
    classes = torch.zeros(len(NAMES), *shape)
    classes[NAMES.index("cerebral_wm")] = inside
    classes[0] = 1 - inside
    left = torch.from_numpy((world[0] < 0).reshape(shape)).float()
    return Posteriors(classes, left, grid)


@pytest.mark.parametrize("axes", ["RAS", "LAS", "PSR"])
def test_labels_lie_on_the_scan_with_left_on_the_left(axes):
    found = halves()
    image = nib.Nifti1Image(np.zeros((90, 96, 80), np.uint8), np.diag([1.0, 1, 1, 1]))
    image.affine[:3, 3] = -45
    wanted = nib.orientations.axcodes2ornt(tuple(axes))
    image = image.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted)
    )
    native = Grid(image.shape, image.affine)
    mask, labels = _on_scan(found, native)
    ball = 4 / 3 * np.pi * 30**3
    assert mask.sum() == pytest.approx(ball, rel=0.02)
    x = np.tensordot(native.affine[0, :3], np.indices(native.shape), 1) + native.affine[0, 3]
    assert x[labels == 2].max() < 1.5
    assert x[labels == 41].min() > -1.5
    volumes = {(v.structure, v.side): v for v in _volumes(found, _counted(labels, native))}
    for side in ("left", "right"):
        assert volumes["cerebral_wm", side].soft_mm3 == pytest.approx(ball / 2, rel=0.05)
        assert volumes["cerebral_wm", side].hard_mm3 == pytest.approx(ball / 2, rel=0.05)
    assert volumes["tiv", "both"].hard_mm3 == mask.sum()


def test_storage_orientation_does_not_matter():
    net = Segmenter(SegmenterConfig(len(NAMES), (8, 8), norm_groups=4)).eval()
    data = np.random.default_rng(0).random((20, 24, 22)).astype(np.float32)
    image = nib.Nifti1Image(data, np.diag([2.0, 2, 2, 1]))
    turned = image.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    results = [
        posteriors(net, Volume(np.asarray(i.dataobj, np.float32), i.affine), torch.device("cpu"))
        for i in (image, turned)
    ]
    assert results[0].grid.matches(results[1].grid)
    assert torch.allclose(results[0].classes, results[1].classes, atol=1e-2)
