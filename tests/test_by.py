"""Counterfactuals by masks, and by moved tissue that is filled: anatomy, lock, files, refusals."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from cfgen.bundle import Bundle, copy_bundle, half, net_config, read_bundle, write_part
from cfgen.cli.options import DEFAULT_BUNDLE
from cfgen.config import Edit
from cfgen.data.conditions import parse_interventions
from cfgen.data.parcellation import BRAIN_FROM, NAMES, STRUCTURES
from cfgen.data.volume import Volume, read_volume, write_new
from cfgen.diffusion.guidance import led
from cfgen.edit import masked
from cfgen.edit.anatomy import anatomy_of, moved_maps
from cfgen.edit.control import BESIDE
from cfgen.edit.decoder import DiffusionDecoder
from cfgen.edit.edits import Drawing, Question, TissueEdits, decoded
from cfgen.edit.engine import Engine, load_engine, variables_of
from cfgen.edit.filled import FilledEdits, Lock, lock_of, white_change
from cfgen.edit.latent import edit_latent
from cfgen.edit.masked import edit_by_masks
from cfgen.edit.sidecar import read_sidecar
from cfgen.edit.tissue import move_tissue
from cfgen.edit.volumes import Law, volumes_by_structure
from cfgen.edit.way import Way, way_of
from cfgen.errors import BundleError, ImageError, UsageError
from cfgen.jobs.counterfactual import counterfactual
from cfgen.jobs.counterfactual_checks import checked_way
from cfgen.jobs.counterfactual_files import Options
from cfgen.measure.region_masks import region_masks
from cfgen.nets.condition import Condition
from cfgen.nets.controlnet import control_of
from cfgen.nets.unet import UNet, UNetConfig
from cfgen.scan.gate import Gate
from cfgen.scan.moved import Movement
from cfgen.scan.open import Opened, open_scan
from cfgen.space.grids import model_grid
from cfgen.space.warp import voxels

pytestmark = pytest.mark.usefixtures("prepared_once")
CPU = torch.device("cpu")
# All that is edited but the amygdala.
REGIONS = tuple(name for name in NAMES[BRAIN_FROM:] if name != "amygdala")
GIVEN = {"age": 50.0, "sex": "F"}
QUICK = Edit(steps=2)


@pytest.fixture(scope="module")
def guided(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The shipped segmenter and causal model, small random networks, and one that hears masks."""
    shipped = read_bundle(DEFAULT_BUNDLE)
    bundle = copy_bundle(tiny_bundle, tmp_path_factory.mktemp("bundles") / "guided")
    for part in ("segmenter", "scm"):
        bundle = write_part(bundle, part, shipped.tensors(part), shipped.part(part).config, {})
    unet = bundle.network("unet", UNet, UNetConfig, CPU)
    control = control_of(unet, len(REGIONS) + 1)
    torch.manual_seed(0)
    for part in (control.mask_embed.conv_out, *control.zero_skips, control.zero_middle):
        torch.nn.init.normal_(part.weight, std=0.3)
    beside = {part: bundle.part(part).sha256 for part in BESIDE}
    config = net_config(control.config) | {"kind": "masks", "regions": REGIONS, "beside": beside}
    return write_part(bundle, "controlnet", half(control), config, {})


@pytest.fixture(scope="module")
def engine(guided: Bundle) -> Engine:
    return load_engine(guided.path, "cpu", way=Way("tissue+masks", "tissue"))


@pytest.fixture(scope="module")
def opened(engine: Engine, stripped_scan, prepared_once) -> Opened:
    return open_scan(stripped_scan, None, engine.finder, engine.bundle.preprocess, Gate())


@pytest.fixture(scope="module")
def question(engine: Engine, opened: Opened) -> Question:
    """Twenty years on, a hippocampus that is smaller, and nothing."""
    factual = {**GIVEN, **volumes_by_structure(opened.brain.regions.result.volumes)}
    smaller = {**factual, "hippocampus": 0.8 * factual["hippocampus"]}
    return Question(
        opened, Law(engine.scm, "cohort"), factual, [{**factual, "age": 70.0}, smaller, factual]
    )


@pytest.fixture(scope="module")
def by_masks(engine, question):
    return edit_by_masks(engine, TissueEdits(question), Drawing(QUICK))


@pytest.fixture(scope="module")
def by_both(by_masks):
    return FilledEdits(by_masks)


@pytest.fixture(scope="module")
def maps(engine, opened):
    return anatomy_of(engine, opened, REGIONS)


def test_what_goes_together(guided, tiny_bundle):
    assert way_of(guided) == Way("tissue", "tissue")
    assert way_of(guided, render="warp") == Way("conditions", "warp")
    assert way_of(guided, "masks") == Way("masks", "residual")
    assert way_of(guided, "masks", "latent") == Way("masks", "latent")
    assert way_of(guided, "tissue+masks") == Way("tissue+masks", "tissue")
    for by, render in (("masks", "tissue"), ("tissue", "residual"), ("tissue+masks", "warp")):
        with pytest.raises(
            UsageError, match=f"{render} with --by {by.replace('+', '.')}; expected"
        ):
            way_of(guided, by, render)
    for by in ("masks", "tissue+masks"):
        with pytest.raises(BundleError, match=r"no part 'controlnet'.*train-ldm --control masks"):
            way_of(tiny_bundle, by)


@pytest.mark.parametrize(
    ("options", "sets", "said"),
    [
        (Options(by="masks", field=True), "age=+1", "--field: not with --by masks"),
        (Options(by="masks", keep_noise=False), "age=+1", "--move-noise"),
        (Options(by="masks", scale_head=True), "sex=M", "--scale-head: .*expected --by tissue$"),
        (Options(by="tissue+masks", scale_head=True), "sex=M", "--scale-head"),
        (Options(by="tissue", decoder="diffusion"), "age=+1", "--decoder: not with --by tissue"),
        (Options(by="conditions", rates="within"), "age=+1", "--rates: not with --by conditions"),
        (
            Options(by="conditions", edit=Edit(guidance_from="masks")),
            "age=+1",
            "--guidance-from masks: not with --by conditions",
        ),
        (Options(by="masks"), "amygdala=-10%", "--set: region 'amygdala'; expected those that the"),
        (Options(by="tissue+masks", samples=500), "age=+1", "--samples"),
    ],
)
def test_what_a_way_does_not_have_is_refused_at_once(guided, options, sets, said):
    _, variables = variables_of(guided, Way("tissue", "tissue"))
    with pytest.raises(UsageError, match=said):
        checked_way(guided, parse_interventions(variables, sets=[sets]), options)


def test_guidance_without_a_null_condition_is_refused_at_once(guided, tmp_path):
    bundle = copy_bundle(guided, tmp_path / "told")
    config = {**bundle.part("unet").config, "drop_conditions": 0.0}
    bundle = write_part(bundle, "unet", bundle.tensors("unet"), config, {})
    asked = parse_interventions(bundle.schema, ["+20"])
    options = Options(by="masks", edit=Edit(guidance=2.0))
    with pytest.raises(UsageError, match="--guidance: 2 with a UNet that was never trained"):
        checked_way(bundle, asked, options)
    for edit in (Edit(), Edit(guidance=2.0, guidance_from="factual")):
        assert checked_way(bundle, asked, replace(options, edit=edit)).by == "masks"


def test_a_decoder_of_another_autoencoder_is_refused_at_once(guided, tmp_path):
    bundle = copy_bundle(guided, tmp_path / "decoded")
    config = {"beside": {"autoencoder": "another"}}
    bundle = write_part(bundle, "decoder", {"z_mean": torch.zeros(1)}, config, {})
    asked = parse_interventions(bundle.schema, ["+20"])
    with pytest.raises(BundleError, match="decodes the latents of another autoencoder"):
        checked_way(bundle, asked, Options(by="masks", decoder="diffusion"))


def test_guidance_from_the_factual_exaggerates_the_edit_alone(engine, maps):
    """At one latent it is linear in the weight; a null edit stays one, and no null is needed."""
    models = replace(engine.masked, null=False)
    hippocampus, smaller = REGIONS.index("hippocampus"), maps.clone()
    smaller[REGIONS.index("cerebral_wm")] += maps[hippocampus]
    smaller[hippocampus] = 0
    vector = torch.zeros(1, 2)
    c, target = (Condition(vector, models.control.masks(m)) for m in (maps, smaller))
    torch.manual_seed(0)
    zt, t = torch.randn(1, 8, 20, 24, 22), torch.tensor([400])
    toward, away = models.denoiser(target, 1.0), models.denoiser(c, 1.0)
    step = toward(zt, t) - away(zt, t)
    assert step.abs().max() > 0
    assert torch.allclose(led(toward, away, 5.0)(zt, t), away(zt, t) + 5 * step, atol=1e-5)
    assert torch.equal(led(toward, away, 1.0)(zt, t), toward(zt, t))
    z0 = models.latent_mean.latent(0.1 * zt, vector)
    plain, more = (
        edit_latent(models, z0, c, [target, c], replace(QUICK, guidance=w, guidance_from="factual"))
        for w in (1.0, 3.0)
    )
    assert torch.equal(more.counterfactuals[1], more.reconstruction)
    changes = [float((e.counterfactuals[0] - e.reconstruction).norm()) for e in (plain, more)]
    assert changes[1] == pytest.approx(3 * changes[0], rel=0.2)
    # From the masks alone: conditions that change alone are not exaggerated.
    older = Condition(vector + 1, c.masks)
    how = replace(QUICK, guidance=3.0, guidance_from="masks")
    exaggerated = edit_latent(models, z0, c, [older, target], how).counterfactuals
    assert torch.equal(exaggerated[1], more.counterfactuals[0])
    unguided = edit_latent(models, z0, c, [older], QUICK).counterfactuals
    assert torch.allclose(exaggerated[0], unguided[0], atol=1e-4)
    with pytest.raises(UsageError, match="never trained without conditions"):
        edit_latent(models, z0, c, [target], replace(QUICK, guidance=3.0))


def test_regions_on_the_model_grid_are_those_of_the_scan(engine, opened):
    """All of the brain is of some region; volumes, as the affine shrinks them, and places."""
    names = NAMES[BRAIN_FROM:]
    maps, prepared = anatomy_of(engine, opened, names), opened.prepared
    inside = torch.from_numpy(prepared.image > 0)
    assert (maps[:, ~inside] == 0).all()
    # At its rim the segmenter's grid ends between voxels.
    assert maps[:, inside].sum(0).mean() == pytest.approx(1.0, abs=0.02)
    shrunk = abs(np.linalg.det(prepared.to_native)) * prepared.grid.voxel_mm3
    soft = opened.brain.regions.result.posteriors
    for name in ("cerebral_wm", "cortex_frontal", "cortex_parietal", "hippocampus", "putamen"):
        own = maps[names.index(name)]
        seen = soft.classes[NAMES.index(name)]
        assert float(own.sum()) * shrunk == pytest.approx(float(seen.sum()) * 8, rel=0.2), name
        found = middle(own, prepared.to_native @ prepared.grid.affine)
        assert np.abs(found - middle(seen, soft.grid.affine)).max() < 1.5, name


def middle(volume, affine):
    """Where a map lies, in mm."""
    place = torch.stack([(volume * x).sum() for x in voxels(volume.shape).unbind(-1)])
    return affine[:3, :3] @ (place / volume.sum()).numpy() + affine[:3, 3]


def test_masks_are_moved_as_the_tissue_was(by_masks, opened, maps):
    tissue = by_masks.tissue
    still = move_tissue(tissue.tissue, {}).movement
    assert torch.allclose(moved_maps(maps, REGIONS, opened.prepared, still), maps, atol=1e-3)
    movement = tissue.moved(0).movement
    moved = moved_maps(maps, REGIONS, opened.prepared, movement)
    # Fluid comes where cortex goes: all of a voxel is of something still.
    inside = maps.sum(0) > 0.99
    assert moved.sum(0)[inside].mean() == pytest.approx(1.0, abs=0.01)
    closed = replace(movement, opened=torch.zeros_like(movement.opened))
    without = moved_maps(maps, REGIONS, opened.prepared, closed)
    csf, cortex = REGIONS.index("csf"), [n.startswith("cortex") for n in REGIONS]
    assert torch.allclose(moved.sum(0), without.sum(0), atol=1e-5)
    gained = (moved - without)[csf]
    assert gained.max() > 0.05
    assert torch.allclose((without - moved)[cortex].sum(0), gained, atol=1e-5)
    grown = (moved.sum((1, 2, 3)) / maps.sum((1, 2, 3))).log()
    changes = tissue.question.world(0).within_head
    for r in by_masks.records[0].edited:
        number = REGIONS.index(r.structure)
        assert r.told == pytest.approx(float(moved[number].sum()), abs=0.06)
        assert r.due == pytest.approx(r.factual * math.exp(changes[r.structure]), rel=1e-3, abs=0.1)
    # The flow's own maps are sharper than those that are told: these go most of the way.
    for name in ("lateral_ventricle", "cortex_frontal", "cortex_temporal"):
        way = float(grown[REGIONS.index(name)]) / changes[name]
        assert 0.5 < way < 1.3, name


def test_a_null_edit_is_the_scan_and_a_mask_alone_changes_it(by_masks, opened):
    scan = opened.volume.data
    older, smaller, same = (next(by_masks.images(n)) for n in range(3))
    assert np.array_equal(same, scan)
    for image in (older, smaller):
        changed = image != scan
        assert changed.any()
        assert not changed[~opened.brain.mask].any()
    assert not np.array_equal(older, smaller)
    # Conditions are the same: what changed is what the masks say.
    (hippocampus,) = by_masks.records[1].edited
    assert hippocampus.structure == "hippocampus"
    assert hippocampus.due == pytest.approx(0.8 * hippocampus.factual, abs=0.1)
    assert hippocampus.told < 0.9 * hippocampus.factual
    assert by_masks.records[2].edited == []


@pytest.mark.parametrize("conditional", [True, False])
def test_age_reaches_the_image_by_masks_alone_where_the_mean_follows_it(
    guided, question, conditional, monkeypatch, tmp_path
):
    bundle = copy_bundle(guided, tmp_path / "bundle")
    mean = bundle.tensors("latent_mean")
    bundle = write_part(bundle, "latent_mean", mean, {"conditional": conditional}, {})
    engine = load_engine(bundle.path, "cpu", way=Way("masks", "residual"))
    monkeypatch.setattr(masked, "_moved", lambda maps, *_: maps)
    older = replace(question, targets=question.targets[:1])
    edits = edit_by_masks(engine, TissueEdits(older), Drawing(QUICK))
    (latent,) = edits.latents.latents
    assert torch.equal(latent.counterfactuals[0], latent.reconstruction) == conditional
    assert edits.records[0].conditions == ("factual" if conditional else "target")


def test_what_the_network_does_not_know_is_said(by_masks):
    assert by_masks.records[0].not_told == ["amygdala"]
    assert "amygdala" not in {r.structure for r in by_masks.records[0].edited}
    (notice,) = (n for n in by_masks.notices_of(0) if n.code == "regions-not-told")
    assert "masks of amygdala" in notice.text
    assert {n.code for n in by_masks.notices_of(2)} <= {"volume-support"}


def test_a_region_that_is_set_and_is_not_there_is_refused(engine, question, maps, monkeypatch):
    gone = maps.clone()
    gone[REGIONS.index("hippocampus")] = 0
    monkeypatch.setattr("cfgen.edit.masked.anatomy_of", lambda *_: gone)
    smaller = TissueEdits(replace(question, targets=question.targets[1:2]))
    with pytest.raises(ImageError, match=r"mni_T1w.nii.gz: its mask of hippocampus is empty"):
        edit_by_masks(engine, smaller, Drawing(QUICK))


def test_a_region_that_does_not_fit_is_refused_by_the_scans_name(engine, question):
    larger = {**question.factual, "cortex_frontal": 3 * question.factual["cortex_frontal"]}
    tissue = TissueEdits(replace(question, targets=[larger]))
    with pytest.raises(ImageError, match=r"mni_T1w.nii.gz: .*does not fit.*smaller change"):
        edit_by_masks(engine, tissue, Drawing(QUICK))


def test_the_share_that_is_new_is_what_was_stretched():
    """A map that takes every voxel from half its distance: an eighth of each was there before."""
    shape = (20, 20, 20)
    at = voxels(shape)
    ball = (at - 9.5).norm(dim=-1) < 8
    brain = torch.stack([ball.float() * part for part in (0.5, 0.3)])

    class Plain:
        fluid, cavity, grid = 0.2 * ball, ball, model_grid("t1w-2mm")

        def of(self, name):
            return brain[["grey", "white"].index(name)]

    def movement(factor):
        field = ((at - 9.5) * (1 / factor - 1) * 2.0).permute(3, 0, 1, 2)
        nothing = torch.zeros(shape)
        return Movement(field, nothing, nothing, nothing, nothing, Plain.grid)

    inner = (at - 9.5).norm(dim=-1) < 5
    lock = lock_of(Plain(), movement(2.0))
    assert lock.new[inner].numpy() == pytest.approx(0.7 * (1 - 1 / 8), abs=1e-4)
    assert (lock.new[~ball] == 0).all()
    assert lock.white[1][inner].numpy() == pytest.approx(0.3, abs=1e-4)
    # What shrank is not new, and neither is what stayed.
    for factor in (0.8, 1.0):
        assert lock_of(Plain(), movement(factor)).new.abs().max() < 1e-5


def test_white_matter_changes_its_brightness_and_keeps_its_borders():
    white = torch.zeros(30, 30, 30)
    white[5:25, 5:25, 5:25] = 1
    white[4], white[25] = 0.5 * white[5], 0.5 * white[24]
    lock = Lock(torch.zeros_like(white), (white, white))
    change = torch.full_like(white, -0.1)
    # Elsewhere anything may be said.
    change[white < 1] = 5.0
    found = white_change(lock, change, 2.0)
    assert found[white == 1].numpy() == pytest.approx(-0.1, rel=0.05)
    half_voxel = found[4, 15, 15] / found[5, 15, 15]
    assert float(half_voxel) == pytest.approx(0.5, rel=0.05)
    assert (found[white == 0] == 0).all()
    assert (white_change(lock, torch.zeros_like(white), 2.0) == 0).all()
    # A border that the model moves is not white on both sides of it.
    moved = torch.where((white > 0) & (white.roll(2, 0) == 0), -1.0, 0.0)
    assert (
        white_change(replace(lock, white=(white.roll(2, 0), white)), moved, 2.0).abs().max() < 1e-6
    )


def test_moved_tissue_is_filled_where_the_lock_is_open_alone(by_both, opened, question):
    tissue, image = by_both.tissue, next(by_both.images(0))
    moved = next(tissue.images(0))
    lock = lock_of(tissue.tissue, tissue.moved(0).movement)
    open_ = (lock.new + lock.white[1]).clamp(max=1)
    changed = np.abs(image - moved)
    assert changed.max() > 0
    assert not changed[~opened.brain.mask].any()
    # The tissue's grid has the scan's voxels or coarser ones: one further is out of reach.
    grid = tissue.tissue.grid
    place = np.argwhere(changed > 0) @ opened.volume.affine[:3, :3].T + opened.volume.affine[:3, 3]
    voxel = (place - grid.affine[:3, 3]) / grid.spacing
    near = torch.nn.functional.max_pool3d(open_[None], 3, stride=1, padding=1)[0]
    i, j, k = np.rint(voxel).astype(int).T
    assert (near[i, j, k] > 0).all()
    # A model that changes nothing, where nothing is new, leaves moved tissue to the bit.
    same = replace(by_both.masked.latents.latents[0])
    same.counterfactuals[0] = same.reconstruction
    latents = replace(by_both.masked.latents, latents=[same])
    silent = FilledEdits(replace(by_both.masked, latents=latents))
    quiet = np.abs(next(silent.images(0)) - moved)
    assert quiet.max() > 0
    assert (quiet > 1e-3 * moved.max()).sum() < (changed > 1e-3 * moved.max()).sum()


@pytest.mark.parametrize("by", ["masks", "tissue+masks"])
def test_files_and_what_they_say(engine, stripped_scan, tmp_path, by):
    _, variables = variables_of(engine.bundle, Way("tissue", "tissue"))
    worlds = [parse_interventions(variables, [age])[0] for age in ("+20", "+0")]
    outputs = {w: tmp_path / f"{w.label()}.nii.gz" for w in worlds}
    options = Options(by=by, picture=False, edit=QUICK, report=by == "masks")
    counterfactual(engine, stripped_scan, outputs, given=GIVEN, options=options)
    scan = nib.load(stripped_scan).get_fdata()
    assert np.array_equal(nib.load(outputs[worlds[1]]).get_fdata(), scan)
    assert not np.array_equal(nib.load(outputs[worlds[0]]).get_fdata(), scan)
    sidecar = read_sidecar(outputs[worlds[0]])
    assert (sidecar.by, sidecar.decoder) == (by, "kl")
    assert sidecar.render == ("residual" if by == "masks" else "tissue")
    assert sidecar.sampler.steps == 2
    assert sidecar.round_trip_error is not None
    assert sidecar.masks.control == "masks"
    assert sidecar.masks.not_told == ["amygdala"]
    assert all(r.achieved is not None and r.target > 0 for r in sidecar.regions)
    frontal = next(r for r in sidecar.regions if r.structure == "cortex_frontal")
    told = next(r for r in sidecar.masks.edited if r.structure == "cortex_frontal")
    assert told.due / told.factual == pytest.approx(frontal.target / frontal.factual, rel=1e-3)
    assert sidecar.causal.jacobian is not None
    if by == "masks":
        page = outputs[worlds[0]].with_name("age+20.html").read_text()
        assert "a region fills was moved by a flow" in page


def test_a_diffusion_decoder_starts_from_the_same_noise(engine, monkeypatch):
    shape, seeds = (80, 96, 88), []

    def decode(self, z0, seeds_given, how):
        seeds.append(list(seeds_given))
        torch.manual_seed(seeds_given[0])
        return torch.rand(len(z0), 1, *shape) + z0.mean()

    monkeypatch.setattr(DiffusionDecoder, "decode", decode)
    decoder = DiffusionDecoder(torch.nn.Identity(), engine.models.schedule, shape, 1.2, CPU)
    monkeypatch.setitem(vars(engine), "sharp", replace(engine.models, decoder=decoder))
    drawing = Drawing(seed=7, decoder="diffusion")
    z0 = torch.zeros(1, 8, 20, 24, 22)
    difference = decoded(engine, z0 + 1, drawing) - decoded(engine, z0, drawing)
    assert difference == pytest.approx(1.0, abs=1e-5)
    assert seeds == [[7], [7]]


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("--by", "masks", "--bundle", "tiny"), 4, "no part 'controlnet'"),
        (("--by", "masks", "--render", "tissue"), 2, "tissue with --by masks"),
        (("--by", "masks", "--set", "amygdala=-10%"), 2, "region 'amygdala'"),
        (("--by", "masks", "--decoder", "diffusion"), 4, "no part 'decoder'"),
        (("--by", "moved"), 2, "moved"),
    ],
)
def test_the_command_refuses(cfgen, guided, tiny_bundle, stripped_scan, tmp_path, more, code, said):
    bundle = tiny_bundle if "tiny" in more else guided
    words = [bundle.path if w == "tiny" else w for w in more]
    if "--bundle" not in words:
        words += ["--bundle", bundle.path]
    out = tmp_path / "out.nii.gz"
    change = () if "--set" in words else ("--age", "+20")
    found, _, err = cfgen(
        *("counterfactual", "--in", stripped_scan, "--from", "age=50,sex=F", "--out", out),
        *(*change, "--dry-run", *words),
    )
    assert (found, out.exists()) == (code, False), err
    assert said in err


def test_brains_of_nobody_follow_masks(cfgen, guided, tiny_bundle, opened, maps, tmp_path):
    labels = tmp_path / "map_dseg.nii.gz"
    right = torch.tensor([s.right for s in STRUCTURES])[[NAMES.index(n) for n in REGIONS]]
    data = np.where(maps.sum(0) > 0.5, right[maps.argmax(0)], 0).astype(np.float32)
    write_new(Volume(data, opened.prepared.grid.affine), labels, np.int32)
    command = ("generate", "--age", "70", "--sex", "F", "--steps", 1, "--no-picture", "--masks")
    free, told = tmp_path / "free", tmp_path / "told"
    code, _, err = cfgen(*command, labels, "--bundle", guided.path, "--out", told)
    assert code == 0, err
    assert cfgen(*command[:-1], "--bundle", guided.path, "--out", free)[0] == 0
    (image,) = told.glob("*.nii.gz")
    record = json.loads(next(told.glob("*.json")).read_text())
    assert record["Masks"]["File"] == labels.name
    others = nib.load(next(free.glob("*.nii.gz"))).get_fdata()
    assert not np.array_equal(nib.load(image).get_fdata(), others)
    moved = tmp_path / "moved_dseg.nii.gz"
    volume = read_volume(labels)
    write_new(Volume(volume.data, volume.affine + np.eye(4)), moved, np.int32)
    code, _, err = cfgen(*command, moved, "--bundle", guided.path, "--out", tmp_path / "no")
    assert code == 3
    assert "moved_dseg.nii.gz: the label map is not on the model grid" in err
    code, _, err = cfgen(*command, labels, "--bundle", tiny_bundle.path, "--out", tmp_path / "no")
    assert code == 4
    assert "no part 'controlnet'" in err
    assert region_masks(volume, REGIONS, model_grid("t1w-2mm")).any()
