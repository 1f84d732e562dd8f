"""Moved tissue by the shipped bundle: the causal model's volumes, carried out on a real brain."""

from __future__ import annotations

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from cfgen.bundle import read_bundle
from cfgen.causal.scm import Scm, load_scm
from cfgen.cli.options import DEFAULT_BUNDLE
from cfgen.config import Edit
from cfgen.data.conditions import parse_interventions
from cfgen.data.parcellation import BRAIN_FROM, NAMES, STRUCTURES
from cfgen.data.volume import Grid, read_volume
from cfgen.edit.engine import Engine, load_engine, variables_of
from cfgen.edit.sidecar import Sidecar, read_sidecar
from cfgen.edit.tissue import Tissue, move_tissue, tissue_maps
from cfgen.edit.volumes import Law, world
from cfgen.edit.way import Way, way_of
from cfgen.errors import BundleError, ImageError, UsageError
from cfgen.jobs.counterfactual import counterfactual
from cfgen.jobs.counterfactual_files import Options
from cfgen.measure.fractions import refined, sharpened
from cfgen.measure.segmenter import segment
from cfgen.space.sampling import smoothed
from cfgen.space.warp import voxels

GIVEN = {"age": 50.0, "sex": "F"}
PLAIN = Options(picture=False, field=True)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load_engine(DEFAULT_BUNDLE, "cpu")


@pytest.fixture(scope="module")
def scm() -> Scm:
    return load_scm(read_bundle(DEFAULT_BUNDLE))


def edit(
    engine: Engine, scan: Path, folder: Path, *sets: str, options: Options = PLAIN
) -> dict[str, Path]:
    """Edited images by label; each of `sets` is a world of its own."""
    _, variables = variables_of(engine.bundle, way_of(engine.bundle))
    worlds = [parse_interventions(variables, sets=[s])[0] for s in sets]
    outputs = {w: folder / f"{w.label()}.nii.gz" for w in worlds}
    counterfactual(engine, scan, outputs, given=GIVEN, options=options)
    return {w.label(): path for w, path in outputs.items()}


@pytest.fixture(scope="module")
def edits(engine: Engine, stripped_scan: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("tissue")
    return edit(engine, stripped_scan, folder, "age=+20", "age=+0", "hippocampus=-10%")


def values_of(sidecar: Sidecar) -> dict[str, float]:
    """Factual volumes as the causal model takes them."""
    out: dict[str, float] = {}
    for r in sidecar.regions:
        out[r.structure] = out.get(r.structure, 0.0) + r.factual
    return out


def test_the_sidecar_tells_volumes_and_where_they_come_from(edits, scm):
    sidecar = read_sidecar(edits["age+20"])
    assert sidecar.render == "tissue"
    assert sidecar.by == "tissue"
    assert sidecar.sampler is None
    assert sidecar.round_trip_error is None
    assert sidecar.causal is not None
    assert sidecar.causal.rates == "cohort"
    assert sidecar.causal.head == "kept"
    assert sidecar.causal.worst_volume_error < 0.005
    assert sidecar.causal.jacobian[0] > 0.1
    assert "50 y" in sidecar.causal.centile.text
    assert "70 y" in sidecar.causal.centile.text
    factual = {**GIVEN, **values_of(sidecar)}
    expected = world(Law(scm, "cohort"), factual, {**factual, "age": 70.0}).changes
    for r in sidecar.regions:
        assert math.log(r.target / r.factual) == pytest.approx(expected[r.structure], abs=2e-3)
    ventricles = [r for r in sidecar.regions if r.structure == "lateral_ventricle"]
    assert {r.side for r in ventricles} == {"left", "right"}
    assert all(r.achieved > 1.15 * r.factual for r in ventricles)


def test_outside_the_brain_and_without_a_change_every_voxel_stays(edits, stripped_scan):
    scan = nib.load(stripped_scan).get_fdata()
    np.testing.assert_array_equal(nib.load(edits["age+0"]).get_fdata(), scan)
    assert (nib.load(edits["age+20"]).get_fdata()[scan == 0] == 0).all()


def labelled(engine: Engine, scan: Path, name: str) -> np.ndarray:
    """A structure of both sides, as the segmenter labels it."""
    labels = segment(engine.finder.segmenter, read_volume(scan), engine.device).labels
    structure = STRUCTURES[NAMES.index(name)]
    return np.isin(labels, [structure.left, structure.right])


def carried(image: Path, inside: np.ndarray) -> float:
    """ln of a mask's volume as the field of an image carries it, over what it was."""
    file = nib.load(image.with_name(image.name.replace(".nii.gz", "_field.nii.gz")))
    field = np.asarray(file.dataobj)[:, :, :, 0] * np.array([-1, -1, 1])
    at = np.stack(np.meshgrid(*[np.arange(n) for n in inside.shape], indexing="ij"), -1)
    at = at + field @ np.linalg.inv(file.affine[:3, :3]).T
    after = ndimage.map_coordinates(inside.astype(np.float32), np.moveaxis(at, -1, 0), order=1)
    return math.log(after.sum() / inside.sum())


@pytest.mark.parametrize("structure", ["lateral_ventricle", "cortex_frontal", "cortex_temporal"])
def test_labels_carried_by_the_field_change_as_they_should(edits, engine, stripped_scan, structure):
    inside = labelled(engine, stripped_scan, structure)
    sidecar = read_sidecar(edits["age+20"])
    due = next(math.log(r.target / r.factual) for r in sidecar.regions if r.structure == structure)
    assert 0.8 < carried(edits["age+20"], inside) / due < 1.2


def test_a_volume_is_set_straight_and_nothing_else_is_asked_to_move(edits, engine, stripped_scan):
    sidecar = read_sidecar(edits["hippocampus-10pct"])
    for r in sidecar.regions:
        change = -0.1 if r.structure == "hippocampus" else 0.0
        assert r.target == pytest.approx(r.factual * (1 + change), rel=1e-3)
    assert sidecar.target["hippocampus"].unit == "mm3"
    hippocampi, frontal = (
        carried(edits["hippocampus-10pct"], labelled(engine, stripped_scan, name))
        for name in ("hippocampus", "cortex_frontal")
    )
    assert 0.8 < hippocampi / math.log(0.9) < 1.2
    assert abs(frontal) < 0.002


def test_twenty_years_on_and_back_again(edits, engine, stripped_scan, tmp_path):
    scan = nib.load(stripped_scan).get_fdata()
    given = {"age": 70.0, "sex": "F"}
    _, variables = variables_of(engine.bundle, way_of(engine.bundle))
    back = parse_interventions(variables, ["-20"])[0]
    counterfactual(
        engine,
        edits["age+20"],
        {back: tmp_path / "back.nii.gz"},
        given=given,
        options=Options(picture=False),
    )
    again = nib.load(tmp_path / "back.nii.gz").get_fdata()
    there = nib.load(edits["age+20"]).get_fdata()
    inside = scan > 0
    error = np.abs(again - scan)[inside].mean() / np.ptp(scan)
    assert error < 0.01
    assert error < np.abs(there - scan)[inside].mean() / np.ptp(scan)


def test_the_head_keeps_its_size_unless_it_is_asked_to_follow(scm):
    factual = {**GIVEN, "tiv": 1.4e6, "cortex_frontal": 170e3, "lateral_ventricle": 15e3}
    target = {**factual, "sex": "M"}
    kept = world(Law(scm, "cohort"), factual, target)
    whole = world(Law(scm, "cohort", scale_head=True), factual, target)
    assert kept.changes["tiv"] == 0
    assert kept.head_scale == 1
    assert 1.0 < whole.head_scale < 1.06
    assert whole.changes["cortex_frontal"] > kept.changes["cortex_frontal"]
    assert "tiv" not in whole.within_head
    assert whole.within_head["cortex_frontal"] == pytest.approx(
        whole.changes["cortex_frontal"] - whole.changes["tiv"]
    )


def test_one_person_changes_otherwise_than_people_differ(scm):
    factual = {"age": 70.0, "sex": "F", "tiv": 1.4e6, "hippocampus": 7500.0}
    target = {**factual, "age": 80.0}
    cohort = world(Law(scm, "cohort"), factual, target).changes["hippocampus"]
    within = world(Law(scm, "within"), factual, target).changes["hippocampus"]
    assert 1.5 < within / cohort < 3


def test_a_volume_that_does_not_fit_is_refused_and_leaves_nothing(engine, stripped_scan, tmp_path):
    with pytest.raises(
        ImageError, match=f"{stripped_scan.name}: .*its volume came to .*a smaller change"
    ):
        edit(engine, stripped_scan, tmp_path, "lateral_ventricle=+2000%", options=PLAIN)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(reconstruction=True), "--reconstruction"),
        (Options(samples=500), "--samples"),
        (Options(field=True, scale_head=True), "--field"),
        (Options(render="residual", field=True), "--field"),
        (Options(render="latent", rates="within"), "--rates"),
        (Options(render="warp", keep_noise=False), "--move-noise"),
        (Options(edit=Edit(steps=3, depth=0)), "--steps, --depth: not with --by tissue"),
        # What was said is refused even where it is what is done anyway.
        (
            Options(edit=Edit()),
            "--steps, --depth, --guidance, --guidance-from, --drift: not with --by tissue",
        ),
    ],
)
def test_what_a_render_does_not_have_is_refused(engine, stripped_scan, tmp_path, options, said):
    with pytest.raises(UsageError, match=said):
        edit(engine, stripped_scan, tmp_path, "age=+20", options=options)


def test_a_bundle_without_a_causal_model_edits_latents(tiny_bundle):
    assert way_of(tiny_bundle) == Way("conditions", "residual")
    with pytest.raises(BundleError, match="fit-scm"):
        way_of(tiny_bundle, render="tissue")


def test_posteriors_are_brought_to_what_the_intensities_say():
    """A blurred segmentation of a fluid ball in white matter: the scan knows its border."""
    shape = (32, 32, 32)
    distance = (voxels(shape) - 15.5).square().sum(-1).sqrt()
    truth = (7 - distance + 0.5).clamp(0, 1)
    torch.manual_seed(0)
    image = 1000 - 700 * truth + 20 * torch.randn(shape)
    blurred = smoothed(truth, 1.5)
    classes = torch.zeros(len(NAMES), *shape)
    classes[NAMES.index("lateral_ventricle")] = blurred
    classes[NAMES.index("cerebral_wm")] = 1 - blurred
    p = refined(classes, image, torch.ones(shape, dtype=torch.bool), 2.0)
    found = p[NAMES.index("lateral_ventricle") - BRAIN_FROM]
    torch.testing.assert_close(p.sum(0), torch.ones(shape))
    assert (found - truth).abs().mean() < 0.3 * (blurred - truth).abs().mean()


def test_maps_are_surer_inside_the_brain_than_where_grey_matter_ends():
    p = torch.zeros(len(STRUCTURES) - BRAIN_FROM, 2, 1, 1)
    frontal, csf, white, hippocampus, horn = (
        NAMES.index(name) - BRAIN_FROM
        for name in (
            "cortex_frontal",
            "csf",
            "cerebral_wm",
            "hippocampus",
            "inferior_lateral_ventricle",
        )
    )
    # One voxel between cortex, fluid and white matter, one between hippocampus and its horn.
    p[[frontal, csf, white], 0, 0, 0] = torch.tensor([0.5, 0.3, 0.2])
    p[[hippocampus, horn], 1, 0, 0] = torch.tensor([0.6, 0.4])
    q = sharpened(p)
    assert torch.allclose(q.sum(0), torch.ones(2, 1, 1))
    assert torch.allclose(q[[frontal, csf], 0, 0, 0], torch.tensor([0.25, 0.09]) / 0.38)
    assert q[hippocampus, 1, 0, 0] == pytest.approx(0.6**4 / (0.6**4 + 0.4**4))
    sure = (q > 0.5).float()
    assert torch.equal(sharpened(sure), sure)


def test_maps_and_fluid_fill_the_cavity(engine, stripped_scan):
    scan = read_volume(stripped_scan)
    found = segment(engine.finder.segmenter, scan, engine.device)
    mask = scan.data > 0
    bare, shelled = (tissue_maps(scan, found.posteriors, mask, stripped=s) for s in (False, True))
    for tissue in (bare, shelled):
        total = tissue.maps.sum(0) + tissue.fluid
        torch.testing.assert_close(total[tissue.cavity], torch.ones(int(tissue.cavity.sum())))
        assert (total[~tissue.cavity] == 0).all()
    assert shelled.cavity.sum() > 1.1 * bare.cavity.sum()
    with pytest.raises(ImageError, match="ask for a smaller change"):
        move_tissue(bare, {"cerebral_wm": 1.0})


def test_a_ventricle_grows_by_its_own_fluid():
    """Its fluid is 40, a voxel of its border less, and the fluid around the brain 10."""
    shape, spacing = (40, 40, 40), 2.0
    r = (voxels(shape) - 19.5).square().sum(-1).sqrt()
    cavity = r < 18
    ventricle = (6.5 - r).clamp(0, 1)
    fluid = (r - 14.5).clamp(0, 1) * cavity
    white = (1 - ventricle - fluid) * cavity
    image = 40 * ventricle + 10 * fluid + 100 * white
    grid = Grid(shape, np.diag([spacing, spacing, spacing, 1.0]))
    keys = (("lateral_ventricle", "both"), ("cerebral_wm", "both"))
    tissue = Tissue(torch.stack([ventricle, white]), keys, fluid, cavity, image, grid)
    movement = move_tissue(tissue, {"lateral_ventricle": 0.4}).movement
    grown = movement.purified > 0.1
    assert grown.sum() > 500
    torch.testing.assert_close(
        movement.fluid[grown], torch.full((int(grown.sum()),), 40.0), atol=2.0, rtol=0
    )
    # Further out than any ventricle there is no fluid but that of the whole.
    assert 10 < movement.fluid[1, 19, 19] < 50


def test_the_sidecar_is_json_that_reads_back(edits):
    raw = json.loads(edits["age+20"].with_name("age+20.json").read_text())
    assert raw["Causal"]["Rates"] == "cohort"
    assert raw["Regions"][0].keys() >= {"Factual_mm3", "Target_mm3", "Achieved_mm3"}
