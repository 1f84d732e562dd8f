"""The second truth: volumes met by partial volumes alone, and not a bit changed elsewhere."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from scipy import ndimage

from cfgen.data.conditions import parse_interventions
from cfgen.data.manifest import read_manifest
from cfgen.data.regions import group_mask
from cfgen.data.volume import read_volume
from cfgen.errors import UsageError
from cfgen.evaluate.pairs import read_truths
from cfgen.sim import cohort
from cfgen.sim.anatomy import scale_to_rendered
from cfgen.sim.graph import graph
from cfgen.sim.phantom import grown, painted
from cfgen.sim.reference import reference
from cfgen.sim.render import CHANNELS, render, render_phantom
from tests.conftest import DATA, needs_data

MODEL = graph()
SHAPE = (40, 40, 40)
RADIUS = 8.0


def ball(radius: float) -> torch.Tensor:
    """Fractions (SHAPE) of a ball, antialiased on an eight times finer grid."""
    fine = [(np.arange(4 * n) + 0.5) / 4 - n / 2 for n in SHAPE]
    inside = sum(x**2 for x in np.meshgrid(*fine, indexing="ij", sparse=True)) < radius**2
    blocks = inside.reshape(40, 4, 40, 4, 40, 4).mean((1, 3, 5))
    return torch.from_numpy(blocks.astype(np.float32))


@pytest.fixture(scope="module")
def shells() -> torch.Tensor:
    """A ball, a shell around it, and the rest: three channels that sum to 1."""
    core, outer = ball(RADIUS), ball(14.0)
    return torch.stack([core, outer - core, 1 - outer])


@pytest.mark.parametrize("radius", [8.3, 9.5, 11.0])
def test_a_ball_grows_to_the_ball_of_that_volume(shells, radius):
    wanted = 4 / 3 * np.pi * radius**3
    gain = wanted - float(shells[0].sum())
    after = grown(shells, (0,), (1,), gain, 1.0)
    assert float(after[0].double().sum()) == pytest.approx(wanted, rel=5e-4)
    assert float((after.sum(0) - 1).abs().max()) < 1e-6
    assert float(after.min()) >= 0
    # The border is a sphere again: the same fractions but for some of the voxels that it cuts.
    assert float((after[0] - ball(radius)).abs().mean() / ball(radius).mean()) < 0.04
    # What is neither grown nor taken from has its bits, and so has what is far.
    assert torch.equal(after[2], shells[2])
    far = ball(radius + 2.5) == 0
    assert torch.equal(after[:, far], shells[:, far])


def test_what_is_taken_goes_to_the_nearest(shells):
    """The shell gives to the ball on one side and to the rest on the other."""
    after = grown(shells, (0, 2), (1,), 3000.0, 1.0)
    gained = after - shells
    assert float(gained[0].sum() + gained[2].sum()) == pytest.approx(3000, rel=5e-4)
    # One distance everywhere, 0.94 voxels: the larger surface takes more.
    shares = (14**3 - 13.06**3) / (8.94**3 - 8**3)
    assert float(gained[2].sum() / gained[0].sum()) == pytest.approx(shares, rel=0.05)
    assert float(gained[0][ball(11.0) == 0].abs().max()) == 0


def test_more_than_there_is_cannot_be_taken(shells):
    with pytest.raises(UsageError, match="cannot be reached by this head"):
        grown(shells, (0,), (1,), 1.2 * float(shells[1].sum()), 1.0)


def test_paint_is_what_the_new_fractions_would_look_like(shells):
    """An image of known means under a bias field, and noise that stays where it is."""
    x = torch.linspace(0.8, 1.2, 40)[:, None, None]
    means = torch.stack([200 * x, 1000 * x, 600 * x]).expand(3, *SHAPE)
    noise = 20 * torch.randn(SHAPE, generator=torch.manual_seed(0))
    after = grown(shells, (0,), (1,), 1500.0, 1.0)
    image = (shells * means).sum(0) + noise
    result = painted(image, shells, after, 1.0)
    true = (after * means).sum(0) + noise
    same = (after == shells).all(0)
    assert torch.equal(result[same], image[same])
    missed, due = (result - true).square().sum(), (true - image).square().sum()
    assert float(missed / due) < 0.002
    assert torch.equal(painted(image, shells, shells, 1.0), image)


def changed(subject, text):
    (intervention,) = parse_interventions(cohort.schema(MODEL), sets=text.split(","))
    return cohort.counterfactual(MODEL, subject, intervention)


@pytest.mark.parametrize(("number", "text"), [(2, "age=+20"), (5, "age=-15,ventricles=20")])
def test_simulated_people_meet_their_volumes(number, text):
    """Within 0.05 % of the graph's, up and down; the rest of the image keeps its bits, and no
    label changes farther than a few mm from where another was."""
    head = reference("t1w-2mm")
    subject = cohort.sample(MODEL, cohort.preset("mixed"), 0, number, number + 1)[0]
    target = changed(subject, text)
    first, then = render(MODEL, head, subject, 0), render_phantom(MODEL, head, subject, target, 0)
    wanted = target.volumes.regions[0] * scale_to_rendered(MODEL, head)
    assert np.abs(then.volumes_ml / wanted - 1).max() < 5e-4
    assert then.tiv_ml == first.tiv_ml
    still = (first.posteriors == then.posteriors).all(-1)
    assert 0.85 < still.mean() < 0.95
    # A voxel whose fractions changed by less than a 255th looks still.
    assert np.abs(then.image - first.image)[still].max() < 5
    total = then.posteriors.astype(int).sum(-1)
    assert np.abs(total - first.posteriors.astype(int).sum(-1)).max() <= len(CHANNELS)
    # Deep grey matter, cerebellum and brainstem are not of the graph.
    for name in ("fixed_white", "fixed_grey"):
        k = CHANNELS.index(name)
        assert np.array_equal(first.posteriors[..., k], then.posteriors[..., k])
    other = first.labels != then.labels
    borders = np.zeros(first.labels.shape, bool)
    for axis in range(3):
        step = np.diff(first.labels, axis=axis, append=0) != 0
        borders |= step | np.roll(step, 1, axis)
    assert ndimage.distance_transform_edt(~borders)[other].max() * 2 <= 6


def test_nothing_asked_is_nothing_changed():
    head = reference("t1w-2mm")
    subject = cohort.sample(MODEL, cohort.preset("mixed"), 0, 3, 4)[0]
    first = render(MODEL, head, subject, 0)
    then = render_phantom(MODEL, head, subject, changed(subject, "age=+0"), 0)
    # Volumes were met to 0.05 %, and are now met to less.
    assert np.abs(then.image - first.image).mean() < 0.2
    assert np.abs(then.volumes_ml / first.volumes_ml - 1).max() < 1e-3


def test_a_cohort_of_phantoms(cfgen, tmp_path):
    """Files as of any truth, which `evaluate --truth` reads; who made it stands in the sidecar."""
    out = tmp_path / "out"
    words = ("--n", 1, "--truth", "age=+10", "--truth-by", "partial-volumes", "--out", out)
    code, _, said = cfgen("simulate", *words)
    assert code == 0, said
    known = cohort.schema(MODEL)
    rows, truths = (read_manifest(out / f"{n}.csv", known) for n in ("manifest", "truth"))
    assert (len(rows), len(truths)) == (1, 1)
    read_truths(truths, "--truth")
    lines = list(csv.DictReader((out / "volumes.csv").open()))
    for truth in truths:
        line = next(x for x in lines if x["subject"] == truth.subject and x["intervention"])
        ml = group_mask(read_volume(truth.labels).data, "freesurfer", "lateral_ventricle").sum()
        assert ml * 8 / 1000 == pytest.approx(float(line["ventricles_rendered"]), rel=0.35)
        record = json.loads((truth.image.parent / f"{truth.subject}_T1w.json").read_text())
        assert record["TruthBy"] == "partial-volumes"
    assert json.loads((out / "dataset_description.json").read_text())["TruthBy"]


@pytest.mark.parametrize(
    ("truth", "said"),
    [
        ("manufacturer=GE", "another scanner or protocol"),
        ("sex=M", "mL inside the skull instead of"),
    ],
)
def test_what_borders_cannot_do_is_refused_first(cfgen, tmp_path, truth, said):
    """The sixth of seed 0 is a woman."""
    words = ("--truth", truth, "--truth-by", "partial-volumes", "--n", 6, "--shard", "6/6")
    code, _, err = cfgen("simulate", *words, "--out", tmp_path / "out")
    assert (code, said in err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_an_unknown_way_is_refused(cfgen, tmp_path):
    code, _, err = cfgen("simulate", "--truth-by", "magic", "--out", tmp_path / "out")
    assert code == 2
    assert "'anatomy', 'partial-volumes'" in err


@needs_data
def test_label_maps_of_whole_heads():
    """A label map at 1 mm as fractions at 2 mm: its ventricles grow by a fifth into what is around
    them, the image by its classes' means; folds and face stay as they are."""
    path = sorted((DATA / "synthseg_labels").glob("*.nii.gz"))[0]
    labels = np.rint(read_volume(path).data).astype(int)
    labels = labels[tuple(slice(0, n // 2 * 2) for n in labels.shape)]
    shape = [m for n in labels.shape for m in (n // 2, 2)]
    masks = [np.isin(labels, (4, 43)), np.isin(labels, (2, 41, 10, 49, 11, 50))]
    masks.append(~(masks[0] | masks[1]))
    blocks = [m.reshape(shape).mean((1, 3, 5), dtype=np.float32) for m in masks]
    fractions = torch.from_numpy(np.stack(blocks))
    ventricles = float(fractions[0].sum())
    after = grown(fractions, (0,), (1,), 0.2 * ventricles, 2.0)
    assert float(after[0].double().sum()) == pytest.approx(1.2 * ventricles, rel=1e-3)
    assert torch.equal(after[2], fractions[2])
    image = torch.tensordot(torch.tensor([30.0, 110.0, 70.0]), fractions, 1)
    result = painted(image, fractions, after, 2.0)
    true = torch.tensordot(torch.tensor([30.0, 110.0, 70.0]), after, 1)
    assert float((result - true).abs().max()) < 1.5
