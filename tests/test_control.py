"""Masks of regions as conditions: networks, masks of the training scans, training, refusals."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from cfgen import device as devices
from cfgen.bundle import copy_bundle, net_config, read_bundle, write_part
from cfgen.cli.options import DEFAULT_BUNDLE
from cfgen.config import Edit, FitConfig, Generation
from cfgen.data.parcellation import NAMES, STRUCTURES
from cfgen.data.table import Row
from cfgen.data.volume import Volume, read_volume, write_new
from cfgen.diffusion.guidance import guided
from cfgen.edit.control import BESIDE
from cfgen.edit.generation import generate
from cfgen.edit.latent import edit_latent, load_models
from cfgen.errors import BundleError, ImageError, ManifestError, UsageError
from cfgen.measure.region_masks import (
    REGIONS,
    parse_regions,
    region_fractions,
    region_masks,
    require_known,
)
from cfgen.measure.segmenter import load_segmenter
from cfgen.nets.condition import Condition
from cfgen.nets.controlnet import (
    ControlNet,
    ControlNetConfig,
    concatenated,
    control_of,
    controlled,
    pool_masks,
    told,
    widened,
    zone_of,
)
from cfgen.nets.convert import controlnet_from_monai, unet_from_monai
from cfgen.nets.unet import UNet, UNetConfig
from cfgen.space.grids import model_grid, resample
from cfgen.train.cohort import Cohort
from cfgen.train.control import ControlConfig, ControlTask, region_contrast, removed
from cfgen.train.latent_diffusion import LatentDiffusionConfig
from cfgen.train.latents import LatentData, fit_mean, seen
from cfgen.train.masks import MaskReader, require_seen

CPU = torch.device("cpu")
GRID = model_grid("t1w-2mm")
LATENT = (20, 24, 22)
THREE = ("csf", "cerebral_wm", "thalamus")
SMALL = UNetConfig(4, 4, (8, 16), 1, (False, True), 8, 5, norm_groups=4)


def randomised(net, std=0.08):
    torch.manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return net.eval()


def asked():
    """zt, t, context and masks, of which the edges are odd."""
    torch.manual_seed(1)
    return (
        torch.randn(2, 4, 5, 6, 7),
        torch.tensor([3, 700]),
        torch.randn(2, 3, 5),
        torch.rand(2, 3, 5, 6, 7),
    )


def label_volume(path=None, change=0):
    """White matter, in it a thalamus on each side, fluid around; `change` widens the thalami."""
    labels = np.zeros(GRID.shape, np.float32)
    labels[16:64, 16:80, 16:72] = 24
    labels[20:60, 20:76, 20:68] = 2
    labels[24:36, 40:52, 40 : 48 + change] = 10
    labels[44:56, 40:52, 40 : 48 + change] = 49
    return Volume(labels, GRID.affine, path)


def one_hot(change=0):
    return torch.from_numpy(region_masks(label_volume(change=change), THREE, GRID)).float()


def test_a_control_network_equals_monai():
    from monai.networks.nets import ControlNet as Theirs
    from monai.networks.nets import DiffusionModelUNet

    same = {
        "spatial_dims": 3,
        "in_channels": 4,
        "num_res_blocks": 2,
        "channels": (8, 16),
        "attention_levels": (False, True),
        "norm_num_groups": 4,
        "num_head_channels": 8,
        "with_conditioning": True,
        "cross_attention_dim": 5,
    }
    theirs = randomised(
        Theirs(
            **same,
            conditioning_embedding_in_channels=3,
            conditioning_embedding_num_channels=(6,),
        )
    )
    their_unet = randomised(DiffusionModelUNet(**same, out_channels=4))
    config = replace(SMALL, res_blocks=2)
    ours = ControlNet(ControlNetConfig(**vars(config), mask_channels=3, mask_width=6)).eval()
    ours.load_state_dict(controlnet_from_monai(theirs.state_dict()))
    unet = UNet(config).eval()
    unet.load_state_dict(unet_from_monai(their_unet.state_dict()))
    zt, t, context, masks = (v[..., :4, :6, :6] if v.ndim == 5 else v for v in asked())
    with torch.no_grad():
        skips, middle = theirs(zt, t, masks, context=context)
        expected = their_unet(zt, t, context, None, tuple(skips), middle)
        found = controlled(unet, ours)(zt, t, context, masks)
        plain = their_unet(zt, t, context)
    assert (found - expected).norm() / expected.norm() < 1e-5
    assert (expected - plain).norm() / plain.norm() > 1e-3


@pytest.mark.parametrize(
    "more", [{}, {"conditioning": "both", "positions": (5, 6, 7)}, {"attention_blocks": 2}]
)
def test_a_new_control_network_changes_nothing_to_the_bit(more):
    unet = randomised(UNet(replace(SMALL, **more)))
    control = control_of(unet, 3)
    zt, t, context, masks = asked()
    with torch.no_grad():
        assert torch.equal(controlled(unet, control)(zt, t, context, masks), unet(zt, t, context))
        # It is a copy of the way down: with other weights of the last layers alone it says much.
        for zero in (*control.zero_skips, control.zero_middle):
            torch.nn.init.eye_(zero.weight[:, :, 0, 0, 0])
        residuals = control(zt, t, masks, context)
        middle, skips = unet.encode(zt, unet.embed(zt, t, context), context)
    assert torch.allclose(residuals.middle, middle, atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(residuals.skips, skips, strict=True))


def test_a_widened_unet_starts_as_it_was():
    unet = randomised(UNet(SMALL))
    wide = widened(unet, 3)
    zt, t, context, masks = asked()
    with torch.no_grad():
        expected, found = unet(zt, t, context), concatenated(wide)(zt, t, context, masks)
        assert (found - expected).norm() / expected.norm() < 1e-6
        wide.conv_in.weight[:, 4:] += 0.1
        assert (concatenated(wide)(zt, t, context, masks) - expected).norm() > 1e-2


def test_guidance_may_use_the_residuals_of_a_pass_again():
    """Both passes at once, and one after the other with the same residuals, which are not used
    up."""
    unet, zt, t, context, masks = randomised(UNet(SMALL)), *asked()
    control = randomised(control_of(unet, 3))
    nothing = torch.zeros_like(context)
    with torch.no_grad():
        fixed = control(zt, t, masks, nothing)
        under = unet(zt, t, context, fixed)
        without = unet(zt, t, nothing, fixed)
        assert torch.equal(unet(zt, t, context, fixed), under)

        def net(pair, level, tokens):
            twice = type(fixed)(
                tuple(torch.cat([s, s]) for s in fixed.skips), fixed.middle.repeat(2, 1, 1, 1, 1)
            )
            return unet(pair, level, tokens, twice)

        found = guided(net, context, nothing, 3.0)(zt, t + 1)
    assert torch.allclose(found, without + 3 * (under - without), atol=1e-4)


def test_pooled_masks_are_parts_of_latent_voxels():
    masks = torch.zeros(1, 2, 8, 8, 8)
    masks[0, 0, :4, :4, :2] = 1
    masks[0, 1, 4:] = 1
    pooled = pool_masks(masks, (2, 2, 2))
    assert pooled.shape == (1, 2, 1, 2, 2, 2)
    assert pooled[0, 0, 0, 0, 0].tolist() == [0.5, 0.0]
    assert bool((pooled[0, 1, 0, 1] == 1).all())
    # Of the parts of a voxel, which lie one behind the other, the last axis fastest.
    parts = pool_masks(masks, (2, 2, 2), 2)
    assert parts.shape == (1, 2, 8, 2, 2, 2)
    assert parts[0, 0, :, 0, 0, 0].tolist() == [1, 0] * 4
    assert torch.equal(parts.mean(2), pooled[:, :, 0])
    chosen = torch.zeros(1, 2, 3, 6, 6, 6)
    chosen[0, 1, 1, 2, 2, 2] = 0.1
    zone = zone_of(chosen, torch.tensor([[False, True]]))
    assert zone.sum() == 27
    assert zone_of(chosen, torch.tensor([[True, False]])).sum() == 0
    said = told(torch.ones(1, 2, 3, 6, 6, 6), zone)
    assert said.shape == (1, 7, 6, 6, 6)
    assert said.sum() == 7 * 27


def test_masks_move_as_their_images_do():
    """An image that is a mask itself; what is drawn for it does not depend on its values."""
    labels = label_volume()
    masks = torch.from_numpy(region_masks(labels, THREE, GRID)).float()
    views = list(seen(masks[1], 5, 0, 3, masks))
    assert torch.equal(views[0][0], masks[1])
    assert torch.equal(views[1][0], masks[1].flip(0))
    for look, moved in views:
        inside = moved[1] > 0.5
        assert (look[inside] > 0.05).float().mean() > 0.999
        assert bool((look[moved[1] == 0] == 0).all())
    blank = [m for _, m in seen(torch.zeros(GRID.shape), 5, 0, 3, masks)]
    assert all(torch.equal(a, b) for a, (_, b) in zip(blank, views, strict=True))
    assert not torch.equal(blank[2], blank[3])


@pytest.fixture(scope="module")
def seeing_bundle(tiny_bundle, tmp_path_factory):
    """Small random networks, and the shipped segmenter."""
    shipped = read_bundle(DEFAULT_BUNDLE)
    bundle = copy_bundle(tiny_bundle, tmp_path_factory.mktemp("bundles") / "seeing")
    config = shipped.part("segmenter").config
    return write_part(bundle, "segmenter", shipped.tensors("segmenter"), config, {})


@pytest.fixture(scope="module")
def brain(stripped_scan):
    """A brain (D, H, W) on the model grid, as a prepared scan is."""
    scan = read_volume(stripped_scan)
    image = resample(scan.data, scan.grid, GRID)
    return np.clip(image / np.percentile(image[image > 0], 99.5), 0, 1.2).astype(np.float32)


def test_fractions_of_regions_follow_the_image(brain, seeing_bundle):
    """A border that moves by a part of a voxel moves what is read by as much; of a label map
    hardly a voxel flips."""
    net = load_segmenter(seeing_bundle, CPU)
    moved = ndimage.shift(brain, (0.1, 0, 0), order=3)
    moved = np.where(brain > 0, np.maximum(moved, 1e-3), 0).astype(np.float32)
    here, there = (
        region_fractions(net, Volume(image, GRID.affine), ("cerebral_wm",), CPU)[0]
        for image in (brain, moved)
    )
    assert here.min() >= 0
    assert here.max() <= 1 + 1e-5
    step = here.roll(1, 0) - here
    slope = float(((there - here) * step).sum() / step.square().sum())
    assert slope == pytest.approx(0.1, abs=0.03)
    # Regions come in the order in which they are asked for.
    both = region_fractions(net, Volume(brain, GRID.affine), ("csf", "cerebral_wm"), CPU)
    assert torch.equal(both[1], here)


def test_masks_of_scans_lie_beside_their_latents(brain, seeing_bundle, tmp_path):
    paths = [tmp_path / f"{n}.nii.gz" for n in range(2)]
    images = [brain, brain[::-1].copy()]
    for image, path in zip(images, paths, strict=True):
        write_new(Volume(image, GRID.affine), path, np.float32)
    rows = [Row(f"p{n}", path) for n, path in enumerate(paths)]
    weights, c = torch.ones(2), torch.zeros(2, 2)
    cohort = Cohort(torch.from_numpy(np.stack(images)), c, weights, rows)
    net = load_segmenter(seeing_bundle, CPU)
    how = ControlConfig("masks", THREE, 2)
    reader = MaskReader(net, how, "t1w-2mm", (10, 12, 11), CPU, 0)
    found = reader.cached(cohort, 2, tmp_path / "masks.npy")
    assert found.shape == (2, 2, 3, 8, 10, 12, 11)
    assert torch.equal(found, reader.all(cohort, 2))
    # The second view of a scan is its mirror image; each part is 8 x 8 x 8 mm.
    alike = found[0, 1].float() - found[1, 0].float()
    assert alike.abs().mean() < 0.01
    white = float(found[0, 0, 1].float().sum()) * 0.512
    assert 500 < white < 850
    # Other regions are another file.
    fewer = replace(reader, control=replace(how, regions=THREE[:2]))
    assert fewer.cached(cohort, 2, tmp_path / "masks.npy").shape[2] == 2


def small_task(kind, contrastive=0.0):
    """People whose latents are their masks, in noise: who is told the masks knows them."""
    torch.manual_seed(0)
    masks = (torch.rand(24, 1, 3, 4, 4, 4) > 0.5).float()
    latents = torch.cat([masks, masks[:, :, :1]], 2) * 2 - 1
    c, parts = torch.zeros(24, 2), masks[:, :, :, None]
    data = LatentData(latents, c, torch.ones(24), latents[:6, 0], c[:6], parts, parts[:6, 0])
    mean = fit_mean(latents, c, torch.ones(24), torch.zeros(2, dtype=torch.bool), False)
    unet = UNet(UNetConfig(4, 4, (8, 16), 1, (False, True), 8, 4, norm_groups=4))
    torch.nn.init.normal_(unet.out[2].weight, std=0.05)
    fit = FitConfig(90, 1e-2, batch_size=8)
    control = ControlConfig(kind, THREE, 1, contrastive=contrastive)
    return ControlTask(unet, data, mean, CPU, fit, LatentDiffusionConfig(), control), unet


@pytest.mark.parametrize("kind", ["masks", "concatenate"])
def test_what_is_told_masks_learns_to_see_them(kind, tmp_path):
    task, unet = small_task(kind)
    before = {k: v.clone() for k, v in unet.state_dict().items()}
    figures = task.report(task.net, tmp_path / "first.png")
    assert figures["error_t700"] == pytest.approx(figures["error_t700_untold"], rel=1e-5)
    adam = torch.optim.AdamW(task.net.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    for step in range(90):
        loss, _ = task.loss(step, generator)
        adam.zero_grad()
        loss.backward()
        adam.step()
    figures = task.report(task.net, tmp_path / "last.png")
    assert figures["error_t700"] < 0.8 * figures["error_t700_untold"]
    assert figures["error_t700"] < 0.8 * figures["error_t700_other"]
    # A control network leaves its UNet alone; a widened one is a network of its own.
    assert all(torch.equal(v, before[k]) for k, v in unet.state_dict().items())


def test_the_contrast_of_regions_in_numbers():
    output, without = torch.zeros(2, 4, 2, 2, 2), torch.zeros(2, 4, 2, 2, 2)
    inside = torch.zeros(2, 1, 2, 2, 2)
    inside[0, 0, 0, 0] = torch.tensor([1.0, 0.5])
    without[:, :, 0, 0, 0], without[:, :, 0, 0, 1], without[:, :, 1] = 0.3, -0.6, 0.2
    # Within 0.3 and half as much of 0.6; outside four voxels of 0.2 and two of none.
    found = region_contrast(output, without, inside, 1.0)
    assert found.tolist() == pytest.approx([0.8 / 6 - 0.6 / 1.5, 0.0])
    assert region_contrast(output, without, inside, 0.1)[0] == pytest.approx(0.8 / 6 - 0.1)
    # The same outputs cost nothing, and gain nothing.
    assert region_contrast(output, output, inside, 1.0).tolist() == [0.0, 0.0]


def test_a_region_that_is_taken_out_of_masks_becomes_its_surroundings():
    pooled = torch.rand(2, 3, 2, 2, 2)
    found = removed(pooled, torch.tensor([2, 0]), THREE)
    assert torch.equal(found[0, 0], pooled[0, 0] + pooled[0, 2])
    assert torch.equal(found[1, 1], pooled[1, 1] + pooled[1, 0])
    assert bool((found[0, 2] == 0).all())
    assert bool((found[1, 0] == 0).all())
    assert torch.allclose(found.sum(1), pooled.sum(1))


def test_the_contrast_is_in_the_loss_and_drives_the_masks():
    task, _ = small_task("masks", contrastive=1.0)
    loss, figures = task.loss(0, torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(figures["error"] + figures["contrast"])
    # At the start no mask changes anything.
    assert figures["contrast"] == 0
    randomised(task.net)
    _, figures = task.loss(0, torch.Generator().manual_seed(0))
    assert figures["contrast"] != 0


@pytest.fixture(scope="module")
def scans(tmp_path_factory, brain):
    """Images of three people, on the model grid."""
    folder = tmp_path_factory.mktemp("scans")
    paths = [folder / f"{n}.nii.gz" for n in range(3)]
    for n, path in enumerate(paths):
        write_new(Volume(brain * (1 - n / 20), GRID.affine), path, np.float32)
    return paths


def manifest(folder, scans):
    path = folder / "manifest.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["subject", "image", "split", "age", "sex"])
        for n, image in enumerate(scans):
            split, sex = ("train", "train", "val")[n], "MFM"[n]
            writer.writerow([f"p{n}", image, split, 30 + 20 * n, sex])
    return path


def train(bundle, table, out, *more):
    return (
        *("train-ldm", "--manifest", table, "--bundle", bundle, "--out", out),
        *("--steps", 1, "--batch-size", 2, "--threads", 1, *more),
    )


@pytest.fixture(scope="module")
def guided_bundle(seeing_bundle, scans, tmp_path_factory):
    from cfgen.jobs.train_control import train_control

    folder = tmp_path_factory.mktemp("guided")
    torch.set_num_threads(1)
    return train_control(
        manifest(folder, scans),
        seeing_bundle.path,
        folder / "guided",
        FitConfig(1, 1e-3, batch_size=2),
        "cpu",
        ControlConfig("masks", THREE),
    )


def test_a_bundle_gains_a_part_and_keeps_the_others(cfgen, seeing_bundle, guided_bundle):
    made = read_bundle(guided_bundle.path)
    assert set(made.parts) == {*seeing_bundle.parts, "controlnet"}
    for name, part in seeing_bundle.parts.items():
        assert made.parts[name].sha256 == part.sha256
        assert made.parts[name].config == json.loads(json.dumps(part.config))
    config = made.part("controlnet").config
    assert config["kind"] == "masks"
    # Latent voxels of 8 mm, in parts of 4 mm.
    assert config["detail"] == 2
    assert config["regions"] == list(THREE)
    assert made.part("controlnet").trained["scans"] == 2
    report = guided_bundle.path.with_name("guided-training") / "controlnet-masks" / "report.csv"
    with report.open(newline="") as file:
        assert "error_t700_other" in next(csv.DictReader(file))
    code, out, _ = cfgen("info", made.path)
    assert code == 0
    assert "controlnet:" in out
    assert "by masks: csf, cerebral_wm, thalamus" in out


def test_an_edit_hears_masks_and_a_bundle_without_them_is_as_it_was(
    tiny_bundle, guided_bundle, monkeypatch
):
    # In bf16 rounding hides what is looked for.
    monkeypatch.setattr(devices, "fast_bf16", lambda device: False)
    models = load_models(guided_bundle, CPU, masks=True)
    plain = load_models(tiny_bundle, CPU)
    torch.manual_seed(0)
    vector, r = torch.zeros(1, 2), torch.randn(1, 8, 20, 24, 22)
    masks = models.control.masks(one_hot())
    under = Condition(vector, masks)
    zt, t = r, torch.tensor([600])
    assert torch.equal(
        models.denoiser(Condition(vector), 1.0)(zt, t),
        plain.denoiser(Condition(vector), 1.0)(zt, t),
    )
    randomised(models.unet, 0.2)
    randomised(models.control.net.__closure__[0].cell_contents, 0.2)
    said = models.denoiser(under, 1.0)(zt, t)
    alone = models.denoiser(Condition(vector), 1.0)(zt, t)
    assert (said - alone).norm() > 0.02 * alone.norm()
    other = Condition(vector, models.control.masks(one_hot(change=8)))
    # Guidance takes the conditions away and leaves the masks.
    nothing = Condition(vector).tokens(torch.ones(1, dtype=torch.bool))
    with torch.inference_mode():
        null = models.control.net(zt, t - 1, nothing, masks)
    expected = null + 10 * (said - null)
    found = models.denoiser(under, 10.0)(zt, t)
    assert (found - expected).norm() < 1e-4 * expected.norm()
    assert (expected - said).norm() > 0.02 * said.norm()
    edit = edit_latent(models, r, under, [other, under], Edit(steps=2, fixed_point=1))
    assert torch.equal(edit.counterfactuals[1], edit.reconstruction)
    assert not torch.equal(edit.counterfactuals[0], edit.reconstruction)


def test_a_bundle_with_a_widened_unet_hears_masks(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "fast_bf16", lambda device: False)
    copied = tmp_path / "copied"
    shutil.copytree(tiny_bundle.path, copied)
    bundle = read_bundle(copied)
    unet = randomised(load_models(bundle, CPU).unet, 0.2)
    wide = widened(unet, 4)
    bundle = write_part(bundle, "unet", unet.state_dict(), bundle.part("unet").config, {})
    beside = {part: bundle.part(part).sha256 for part in BESIDE}
    config = {"kind": "concatenate", "regions": list(THREE), "beside": beside}
    write_part(bundle, "controlnet", wide.state_dict(), net_config(wide.config) | config, {})
    models = load_models(read_bundle(copied), CPU, masks=True)
    c = Condition(torch.zeros(1, 2), models.control.masks(one_hot()))
    zt, t = torch.randn(1, 8, 20, 24, 22), torch.tensor([600])
    expected = models.denoiser(Condition(c.vector), 1.0)(zt, t)
    found = models.denoiser(c, 1.0)(zt, t)
    assert (found - expected).norm() < 1e-5 * expected.norm()
    # Its spread goes back to that of the condition alone.
    schedule = models.schedule
    spreads = [
        schedule.z0_and_eps(models.denoiser(c, *how)(zt, t).detach(), zt, t)[0].std()
        for how in ((1.0,), (40.0,), (40.0, 1.0))
    ]
    assert abs(spreads[1] / spreads[0] - 1) > 0.01
    assert float(spreads[2]) == pytest.approx(float(spreads[0]), rel=1e-3)
    image = generate(models, bundle, {"age": 50.0, "sex": "F"}, 0, Generation(steps=1), c.masks)
    assert image.shape == GRID.shape


def test_masks_that_cannot_be_told_are_refused(tmp_path):
    labels = label_volume(tmp_path / "map.nii.gz")
    moved = Volume(labels.data, np.diag([2.0, 2, 2, 1]), labels.path)
    with pytest.raises(ImageError, match=r"map.nii.gz: the label map is not on the model grid"):
        region_masks(moved, THREE, GRID)
    with pytest.raises(UsageError, match=r"region 'amygdala'; expected those that the bundle was"):
        require_known(["amygdala"], THREE)
    whole = Volume(np.where(labels.data == 24, 3, labels.data), GRID.affine)
    with pytest.raises(ImageError, match="its cortex has no lobes"):
        region_masks(whole, REGIONS, GRID)
    with pytest.raises(UsageError, match="'frontal'; expected one of csf"):
        parse_regions("csf,frontal")
    with pytest.raises(UsageError, match="has a name twice"):
        parse_regions("csf,csf")
    assert parse_regions("thalamus, csf") == ("csf", "thalamus")
    assert parse_regions("") == NAMES[2:] == tuple(s.name for s in STRUCTURES[2:])
    with pytest.raises(ManifestError, match="mask of thalamus is empty in every scan"):
        require_seen(torch.tensor([1.0, 1, 0]).reshape(1, 1, 3, 1, 1, 1), THREE)


def test_networks_that_do_not_belong_together_are_refused(guided_bundle, tiny_bundle, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(guided_bundle.path, copied)
    bundle = read_bundle(copied)
    unet = {k: v * 2 for k, v in bundle.tensors("unet").items()}
    other = write_part(bundle, "unet", unet, bundle.part("unet").config, {})
    with pytest.raises(BundleError, match="trained beside another unet"):
        load_models(other, CPU, masks=True)
    with pytest.raises(BundleError, match=r"no part 'controlnet'.*train-ldm --control masks"):
        load_models(tiny_bundle, CPU, masks=True)
    models = load_models(guided_bundle, CPU)
    c = Condition(torch.zeros(1, 2), torch.zeros(1, 4, 20, 24, 22))
    with pytest.raises(UsageError, match="no network that takes them is loaded"):
        models.denoiser(c, 1.0)
    models = load_models(guided_bundle, CPU, masks=True)
    with pytest.raises(UsageError, match="3 channels; expected 25"):
        models.denoiser(Condition(c.vector, c.masks[:, :3]), 1.0)
    info = json.loads((copied / "bundle.json").read_text())
    info["parts"]["unet"]["config"]["drop_conditions"] = 0.0
    (copied / "bundle.json").write_text(json.dumps(info))
    models = load_models(read_bundle(copied), CPU)
    with pytest.raises(UsageError, match="never trained without conditions"):
        models.denoiser(Condition(c.vector), 2.0)
    models.denoiser(Condition(c.vector), 1.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--control", "masks", "--regions", "brain"], "'brain'; expected one of csf"),
        (["--control", "masks", "--init", "x"], "option of the diffusion model beside it"),
        (["--control", "masks", "--contrastive", "-1"], "--contrastive: -1; expected 0"),
        (["--regions", "csf"], "--regions: without --control"),
        (["--control", "concatenate"], "no part 'segmenter'"),
    ],
)
def test_what_cannot_be_trained(cfgen, tiny_bundle, scans, tmp_path, options, said):
    table = manifest(tmp_path, scans)
    code, _, err = cfgen(*train(tiny_bundle.path, table, tmp_path / "out", "--dry-run", *options))
    assert code in (2, 4), err
    assert said in err
    assert not (tmp_path / "out").exists()


def test_a_trial_says_what_a_step_takes(cfgen, seeing_bundle, scans, tmp_path):
    more = ("--control", "concatenate", "--regions", ",".join(THREE), "--dry-run")
    code, out, err = cfgen(
        *train(seeing_bundle.path, manifest(tmp_path, scans), tmp_path / "out", *more)
    )
    assert code == 0, err
    assert "control by concatenate: 0.1 M parameters" in out
    assert not (tmp_path / "out").exists()
