"""Rendered subjects: every volume met, nothing moved that was not changed, files that say so."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from itertools import combinations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.metrics import MultiScaleSSIMMetric

from cfgen.data.conditions import parse_interventions
from cfgen.data.manifest import read_manifest
from cfgen.data.regions import group_mask
from cfgen.data.volume import read_volume
from cfgen.errors import UsageError
from cfgen.metrics.image import ssim
from cfgen.scan.brain import stripped_mask
from cfgen.sim import cohort
from cfgen.sim.anatomy import make_anatomy, sample_shape, scale_to_rendered
from cfgen.sim.graph import graph
from cfgen.sim.physics import Acquisition, acquire
from cfgen.sim.reference import CORTEX, reference
from cfgen.sim.render import CHANNELS, render

MODEL = graph()


@pytest.fixture(scope="module")
def head():
    return reference("t1w-2mm")


@pytest.fixture(scope="module")
def subject():
    return cohort.sample(MODEL, cohort.preset("aud"), 0, 2, 3)[0]


def changed(subject, text):
    (intervention,) = parse_interventions(cohort.schema(MODEL), sets=text.split(","))
    return cohort.counterfactual(MODEL, subject, intervention)


def test_the_reference_is_a_head(head):
    v = head.volumes_ml()
    assert 10 < v["ventricles"] < 25
    assert 0.17 < 1 - (sum(v.values()) - v["tiv"] - v["ventricles"]) / v["tiv"] < 0.23
    total = head.white + head.grey + head.ventricles + head.fixed_white + head.fixed_grey
    assert float((total - head.skull).max()) < 1e-4
    # Symmetric, as its template is: the halves of every lobe weigh the same.
    mirrored = head.grey.flip(0)
    assert float((head.grey - mirrored).abs().mean()) < 0.01


@pytest.mark.parametrize("number", range(6))
def test_volumes_are_met(head, number):
    """Each within 0.5 % of the graph's, in the rendered scale, of young and old."""
    preset = cohort.preset("elderly-ad" if number % 2 else "adolescents")
    one = cohort.sample(MODEL, preset, 7, number, number + 1)[0]
    anatomy = make_anatomy(MODEL, head, sample_shape(head, 7, number), one.volumes)
    wanted = one.volumes.regions[0] * scale_to_rendered(MODEL, head)
    assert np.abs(anatomy.volumes_ml / wanted - 1).max() < 0.005
    assert anatomy.tiv_ml == pytest.approx(float(one.volumes.tiv[0]), rel=0.005)
    total = anatomy.white + anatomy.grey + anatomy.fluid
    assert float(total.max()) < 1 + 1e-5


def test_a_volume_out_of_reach_is_refused(head, subject):
    regions = subject.volumes.regions.copy()
    regions[0, MODEL.regions.index("ventricles")] = 600
    volumes = replace(subject.volumes, regions=regions)
    with pytest.raises(UsageError, match=r"ventricles: .* mL cannot be reached by this head"):
        make_anatomy(MODEL, head, sample_shape(head, 7, 0), volumes)


def test_nothing_done_is_nothing_changed(head, subject):
    first = render(MODEL, head, subject, 0)
    again = render(MODEL, head, changed(subject, "age=+0"), 0)
    assert np.array_equal(first.image, again.image)
    there_and_back = changed(changed(subject, "age=+5"), "age=-5")
    back = render(MODEL, head, there_and_back, 0)
    assert np.abs(back.image - first.image).max() < 1


def test_a_scanner_leaves_the_brain_alone(head, subject):
    """do(acquisition) changes the image and not one bit of the truth."""
    first = render(MODEL, head, subject, 0)
    other = render(MODEL, head, changed(subject, "manufacturer=GE,field_tesla=1.5"), 0)
    assert np.array_equal(first.labels, other.labels)
    assert np.array_equal(first.posteriors, other.posteriors)
    assert not np.array_equal(first.image, other.image)


def test_alcohol_leaves_the_occipital_cortex_alone(head):
    sober = cohort.sample(MODEL, cohort.preset("aud"), 0, 0, 1)[0]
    assert sober.parents.aud[0] == 0
    plain = render(MODEL, head, sober, 0)
    drinker = render(MODEL, head, changed(sober, "aud=1"), 0)
    occipital = CHANNELS.index("occipital")
    frontal = CHANNELS.index("frontal")
    moved = plain.posteriors.astype(int) - drinker.posteriors
    assert np.abs(moved[..., occipital]).mean() < 0.01 * np.abs(moved[..., frontal]).mean()


def test_age_widens_the_ventricles_and_thins_the_cortex(head, subject):
    young, old = (render(MODEL, head, changed(subject, f"age={a}"), 0) for a in (30, 80))
    counts = [np.bincount(r.labels.ravel() % 1000, minlength=1000) for r in (young, old)]
    assert counts[1][4] > 1.5 * counts[0][4]
    ratio = old.volumes_ml / young.volumes_ml
    expected = (
        changed(subject, "age=80").volumes.regions / changed(subject, "age=30").volumes.regions
    )
    assert np.allclose(ratio, expected[0], rtol=0.005)


def test_people_differ_and_batches_do_not(head):
    a = sample_shape(head, 0, 4)
    torch.rand(10)
    assert torch.equal(a.own, sample_shape(head, 0, 4).own)
    assert float((a.own - sample_shape(head, 0, 5).own).abs().mean()) > 1


def test_shapes_do_not_fold(head):
    """The Jacobian of a subject's own displacement is positive nearly everywhere."""
    own = sample_shape(head, 1, 0).own / head.grid.spacing[0]
    gradient = torch.stack([torch.stack(torch.gradient(own[a])) for a in range(3)])
    jacobian = gradient + torch.eye(3).reshape(3, 3, 1, 1, 1)
    determinant = torch.linalg.det(jacobian.permute(2, 3, 4, 0, 1)[head.skull > 0.5])
    assert float((determinant <= 0).float().mean()) < 1e-3


def test_cohort_on_disk(cfgen, tmp_path):
    out = tmp_path / "cohort"
    code, printed, said = cfgen(
        "simulate", "--preset", "lifespan", "--n", 2, "--truth", "age=+10", "--out", out, "--json"
    )
    assert code == 0, said
    summary = json.loads(printed)
    assert (len(summary["images"]), len(summary["truths"])) == (2, 2)
    rows = read_manifest(out / "manifest.csv", cohort.schema(MODEL))
    truths = list(csv.DictReader((out / "truth.csv").open()))
    assert float(truths[0]["age"]) == pytest.approx(float(rows[0].values["age"]) + 10)
    image, labels = nib.load(rows[0].image), nib.load(rows[0].labels)
    assert b"SYNTHETIC" in image.header["descrip"].item()
    four = nib.load(rows[0].posteriors)
    assert four.shape == (*image.shape, len(CHANNELS))
    # Stored in 255ths: the sum is 1 but for the rounding of each channel.
    assert np.abs(four.get_fdata(dtype=np.float32).sum(-1) - 1).max() < 0.03
    record = json.loads(rows[0].image.with_name(f"{rows[0].subject}_T1w.json").read_text())
    assert record["Synthetic"] is True
    volumes = list(csv.DictReader((out / "volumes.csv").open()))
    counted = group_mask(np.asarray(labels.dataobj), "freesurfer", "lateral_ventricle").sum() * 8
    assert counted / 1000 == pytest.approx(float(volumes[0]["ventricles_rendered"]), rel=0.35)
    # Left is left: every left code lies at x < 0.
    x = image.affine[0, 0] * np.arange(image.shape[0]) + image.affine[0, 3]
    assert x[np.unique(np.argwhere(np.asarray(labels.dataobj) == 2)[:, 0])].max() < 0
    assert stripped_mask(read_volume(rows[0].image)) is not None
    # A shard is a part of the whole, to the byte.
    part = tmp_path / "part"
    code, _, said = cfgen("simulate", "--n", 2, "--shard", "2/2", "--out", part)
    assert code == 0, said
    names = [p.relative_to(part) for p in part.rglob("*.nii.gz")]
    assert len(names) == 3
    for name in names:
        assert (part / name).read_bytes() == (out / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--preset", "martians"], "unknown preset 'martians'"),
        (["--truth", "subarachnoid=200"], "unknown variable"),
        (["--truth", "age=200"], "200"),
        (["--truth", "white_matter=850"], "do not fit into the skull"),
        (["--stress", "war"], "unknown 'war'"),
        (["--shard", "3/2"], "'3/2'"),
    ],
)
def test_refusals_come_before_any_image(cfgen, tmp_path, arguments, said):
    code, _, err = cfgen("simulate", "--n", 2, *arguments, "--out", tmp_path / "out")
    assert code == 2
    assert said in err
    assert not (tmp_path / "out").exists()


def test_dry_run_counts_and_names_who_is_left_out(cfgen, tmp_path):
    code, out, err = cfgen(
        "simulate", "--n", 40, "--truth", "age=+30", "--dry-run", "--out", tmp_path / "out"
    )
    assert code == 0
    assert out.startswith("40 images, ")
    assert int(out.split()[2]) + err.count("left out:") == 40


def test_regions_are_those_of_the_graph():
    assert {"ventricles", "white_matter", *CORTEX} == set(MODEL.regions)


def test_the_reference_head_looks_like_its_template():
    """A noise-free MPRAGE of the unchanged maps at 1 mm beside MNI152's own T1: SSIM 0.97."""
    head = reference("cdm-1mm")
    maps = torch.stack(
        [
            head.white + head.fixed_white,
            head.grey + head.fixed_grey,
            (head.skull - head.white - head.fixed_white - head.grey - head.fixed_grey).clamp(min=0),
        ]
    )
    scan = Acquisition()
    one = torch.ones(head.grid.shape)
    image = acquire(maps, scan, 1.0, 25.0, torch.ones(3, *head.grid.shape), one, one, None).numpy()
    t1, mask = head.t1.numpy(), head.t1.numpy() > 0.02
    slope, offset = np.polyfit(image[mask].astype(float), t1[mask].astype(float), 1)
    rendered = np.where(mask, slope * image + offset, 0)
    assert ssim(rendered, t1, mask) > 0.95


def test_people_are_as_unlike_as_people(head):
    """Mean MS-SSIM between subjects; 31 IXI brains on the same grid have 0.78."""
    metric = MultiScaleSSIMMetric(3, kernel_size=7, weights=(0.3, 0.3, 0.4))
    images = []
    for one in cohort.sample(MODEL, cohort.preset("lifespan"), 0, 0, 4):
        image = torch.from_numpy(render(MODEL, head, one, 0).image)
        images.append((image / torch.quantile(image[image > 0], 0.995)).clamp(0, 1)[None, None])
    found = [float(metric(a, b)) for a, b in combinations(images, 2)]
    assert 0.6 < np.mean(found) < 0.85
