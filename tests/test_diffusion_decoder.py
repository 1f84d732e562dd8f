"""The diffusion decoder: tiles, what it is told, sampling, training, refusals."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA, needs_data

from cfgen import device as devices
from cfgen.bundle import read_bundle, write_part
from cfgen.cli.options import DEFAULT_BUNDLE
from cfgen.config import Decoding, FitConfig
from cfgen.data.volume import Volume, write_new
from cfgen.diffusion.schedule import Schedule
from cfgen.edit.decoder import DiffusionDecoder, brightness, load_decoder, voxels
from cfgen.edit.latent import load_models
from cfgen.errors import BundleError, UsageError
from cfgen.measure.segmenter import load_segmenter
from cfgen.metrics.image import psnr
from cfgen.nets.autoencoder import Autoencoder, AutoencoderConfig, start_from_cosines
from cfgen.nets.diffusion_decoder import (
    DecoderConfig,
    DecoderNet,
    boxes,
    tiled,
    upsampled,
)
from cfgen.scan.brain import BrainFinder
from cfgen.scan.gate import Gate
from cfgen.scan.open import open_scan
from cfgen.space.grids import model_grid
from cfgen.train.diffusion_decoder import SCHEDULE, DecoderRecipe, DecoderTask
from cfgen.train.presets import NETWORKS

CPU = torch.device("cpu")
# Of another pack, number of levels and blocks; all small, so that a reach is less than an image.
CONFIGS = (
    DecoderConfig((4, 8), 3),
    DecoderConfig((4, 4, 4), 3, pack=1),
    DecoderConfig((4, 4), 3, res_blocks=2, pack=1, unpacked_channels=2),
)


def randomised(net):
    torch.manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


@pytest.mark.parametrize("config", CONFIGS)
def test_tiles_are_the_whole_image(config):
    net = randomised(DecoderNet(config))
    multiple = config.multiple
    shape = ((2 * config.reach // multiple + 4) * multiple, 4 * multiple, 2 * multiple)
    torch.manual_seed(0)
    xt, t = torch.randn(1, 1, *shape), torch.tensor([300])
    latent = torch.randn(1, 3, *(n // config.pack for n in shape))
    with torch.no_grad():
        whole = net(xt, t, latent)
        for tile in (2 * multiple, 3 * multiple):
            found = tiled(net, xt, t, latent, tile)
            assert (found - whole).abs().max() < 2e-5 * whole.abs().max()
    with pytest.raises(ValueError, match="no multiple"):
        tiled(net, xt, t, latent, multiple + 1)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_reach_is_enough_and_not_much_more(config):
    net = randomised(DecoderNet(config))
    length = 2 * config.reach + 4 * config.multiple
    size = 2 * config.multiple
    x = torch.randn(1, 1, length, size, size, requires_grad=True)
    latent = torch.randn(1, 3, length // config.pack, size // config.pack, size // config.pack)
    middle = length // 2
    out = net(x, torch.tensor([5]), latent)
    (gradient,) = torch.autograd.grad(out[0, 0, middle].square().sum(), x)
    known = torch.nonzero(gradient.abs().sum((0, 1, 3, 4)))[:, 0]
    far = max(middle - int(known.min()), int(known.max()) - middle)
    assert config.reach / 2 < far <= config.reach


def test_tiles_cover_every_voxel_once():
    count = torch.zeros(10, 12, 7, dtype=torch.int)
    for inner, outer in boxes(count.shape, 4, 3):
        count[inner] += 1
        for a, b, n in zip(inner, outer, count.shape, strict=True):
            assert b.start == max(a.start - 3, 0)
            assert b.stop == min(a.stop + 3, n)
    assert bool((count == 1).all())


def test_a_latent_is_brought_to_the_place_of_its_voxels():
    """A ramp stays one: latent voxel i covers image voxels 4 i to 4 i + 3."""
    z = torch.arange(6.0).reshape(1, 1, 6, 1, 1).expand(1, 1, 6, 2, 2)
    up = upsampled(z, (24, 8, 8), 2)
    assert up.shape == (1, 1, 12, 4, 4)
    places = (2 * torch.arange(12) + 0.5 - 1.5) / 4
    assert torch.allclose(up[0, 0, 1:-1, 1, 1], places[1:-1])


def test_the_network_hears_latent_and_time():
    net = randomised(DecoderNet(CONFIGS[0]))
    x, latent = torch.randn(1, 1, 8, 8, 8), torch.randn(1, 3, 4, 4, 4)
    with torch.no_grad():
        first = net(x, torch.tensor([5]), latent)
        assert not torch.allclose(net(x, torch.tensor([700]), latent), first)
        assert not torch.allclose(net(x, torch.tensor([5]), latent + 1), first)
        net.z_mean += 1
        assert torch.allclose(net(x, torch.tensor([5]), latent + 1), first, atol=1e-5)


class Knows(torch.nn.Module):
    """A network that knows the image: what it says is right at every noise."""

    def __init__(self, image, schedule):
        super().__init__()
        self.image, self.schedule, self.config = image, schedule, DecoderConfig((4, 4), 1)

    def forward(self, xt, t, latent):
        signal, noise = self.schedule.levels(t + 1, xt)
        return self.schedule.target(self.image, (xt - signal * self.image) / noise, t + 1)


def test_sampling_ends_at_what_the_network_knows():
    schedule = Schedule.make(SCHEDULE)
    image = torch.rand(1, 1, 8, 8, 8) * 1.2
    decoder = DiffusionDecoder(Knows(voxels(image), schedule), schedule, (8, 8, 8), 1.2, CPU)
    z0 = torch.zeros(1, 1, 2, 2, 2)
    for steps in (1, 4):
        found = decoder.decode(z0, [3], Decoding(steps=steps))
        assert torch.allclose(found, image, atol=1e-4)
    assert brightness(voxels(torch.tensor([-1.0, 0.3, 2.0])), 1.2).tolist() == pytest.approx(
        [0, 0.3, 1.2]
    )
    with pytest.raises(UsageError, match="2 for 1 latents"):
        decoder.decode(z0, [3, 4], Decoding())
    with pytest.raises(UsageError, match="5 voxels; expected a multiple of 4"):
        decoder.decode(z0, [3], Decoding(tile=5))
    with pytest.raises(UsageError, match="steps"):
        decoder.decode(z0, [3], Decoding(steps=2000))


def test_a_decoded_image_is_that_of_its_seed_in_tiles_too(monkeypatch):
    monkeypatch.setattr(devices, "fast_bf16", lambda device: False)
    net = randomised(DecoderNet(DecoderConfig((4, 4), 3, pack=1)))
    torch.nn.init.normal_(net.full_resolution.weight, std=0.02)
    decoder = DiffusionDecoder(net, Schedule.make(SCHEDULE), (32, 8, 8), 1.2, CPU)
    z0 = torch.randn(2, 3, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    first = decoder.decode(z0, [1, 2], Decoding(steps=3))
    assert torch.allclose(decoder.decode(z0, [1, 2], Decoding(3, 4)), first, atol=1e-4)
    assert torch.allclose(decoder.decode(z0[1:], [2], Decoding(3)), first[1:], atol=1e-5)
    assert not torch.allclose(decoder.decode(z0, [3, 2], Decoding(3))[0], first[0], atol=1e-2)


def small_autoencoder():
    torch.manual_seed(0)
    config = AutoencoderConfig(
        (8, 8), (1, 1), (False, False), 8, norm_groups=4, pack=2, linear_path=True
    )
    net = Autoencoder(config)
    start_from_cosines(net)
    return net


def test_it_learns_to_decode():
    """Images of a blob in another place each; after few steps the latent says where it is."""
    axes = torch.stack(torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij"))
    centres = 8 + 3 * torch.randn(12, 3, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    images = torch.exp(-(axes - centres).square().sum(1) / 18)
    recipe = DecoderRecipe(DecoderConfig((16, 16), 0), (16, 16, 16))
    masks = torch.ones(2, 16, 16, 16, dtype=torch.bool)
    fit = FitConfig(100, 5e-3, batch_size=4)
    task = DecoderTask(
        images, torch.ones(12), images[:2], masks, small_autoencoder(), CPU, fit, recipe
    )
    before = {k: v.clone() for k, v in task.autoencoder.state_dict().items()}
    z = torch.stack([task.encode(i[None, None])[0] for i in images])
    assert torch.allclose(task.net.z_mean, z.transpose(0, 1).flatten(1).mean(1), atol=1e-5)
    adam = torch.optim.AdamW(task.net.parameters(), 5e-3)
    for step in range(80):
        loss, _ = task.loss(step, torch.Generator().manual_seed(step))
        adam.zero_grad()
        loss.backward()
        adam.step()
    figures = task.report(task.net.eval(), io.BytesIO())
    mean = images.mean(0)
    of_mean = -10 * torch.log10((images[:2] - mean).square().mean((1, 2, 3))).mean()
    assert figures["psnr_db"] > float(of_mean) + 6
    assert all(torch.equal(v, before[k]) for k, v in task.autoencoder.state_dict().items())


def test_a_crop_has_its_part_of_the_whole_latent():
    images = torch.rand(2, 16, 24, 32, generator=torch.Generator().manual_seed(0))
    recipe = DecoderRecipe(DecoderConfig((4, 4), 0), (8, 8, 8))
    masks = torch.ones(1, 16, 24, 32, dtype=torch.bool)
    net = small_autoencoder()
    task = DecoderTask(
        images, torch.ones(2), images[:1], masks, net, CPU, FitConfig(1, 1e-3), recipe
    )
    # What is told is a picture of the image itself: its voxels packed are its latent's.
    task.encode = lambda x: torch.nn.functional.avg_pool3d(x, 2).expand(-1, 8, -1, -1, -1)
    for seed in range(5):
        x, latent = task._pair(images[0], torch.Generator().manual_seed(seed))
        assert x.shape == (1, 1, 8, 8, 8)
        assert latent.shape == (1, 8, 4, 4, 4)
        assert torch.allclose(latent[:, :1], torch.nn.functional.avg_pool3d(x, 2), atol=1e-5)


def test_the_command_adds_a_decoder_of_this_autoencoder(cfgen, tiny_bundle, tmp_path, monkeypatch):
    grid, rows = model_grid("t1w-2mm"), [["subject", "image", "split", "age", "sex"]]
    people = [("train", 30, "M"), ("train", 60, "F"), ("val", 50, "F")]
    for n, (split, age, sex) in enumerate(people):
        data = np.zeros(grid.shape, np.float32)
        data[20:60, 20:70, 20:60] = 0.5 + n / 10
        write_new(Volume(data, grid.affine), tmp_path / f"{n}.nii.gz", np.float32)
        rows.append([f"p{n}", f"{n}.nii.gz", split, age, sex])
    table = tmp_path / "manifest.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    small = DecoderRecipe(DecoderConfig((4, 4), 0), (16, 16, 16))
    monkeypatch.setitem(NETWORKS, "t1w-2mm", replace(NETWORKS["t1w-2mm"], decoder=small))
    given = ("train-ae", "--manifest", table, "--threads", 1, "--decoder", "diffusion")
    out = tmp_path / "sharp"
    more = ("--init", tiny_bundle.path, "--out", out, "--batch-size", 1, "--steps", 1)
    code, said, err = cfgen(*given, *more, "--dry-run")
    assert code == 0, err
    assert "diffusion decoder: 0.0 M parameters" in said
    assert not Path(out).exists()
    code, _, err = cfgen(*given, *more)
    assert code == 0, err
    bundle = read_bundle(out)
    assert set(bundle.parts) == {*tiny_bundle.parts, "decoder"}
    assert all(bundle.parts[n].sha256 == p.sha256 for n, p in tiny_bundle.parts.items())
    decoder = load_decoder(bundle, CPU)
    image = decoder.decode(torch.zeros(1, 8, 20, 24, 22), [0], Decoding(steps=1))
    assert image.shape == (1, 1, *grid.shape)
    assert 0 <= image.min() <= image.max() <= 1.2
    with pytest.raises(BundleError, match=r"no part 'decoder'.*train-ae --decoder diffusion"):
        load_decoder(tiny_bundle, CPU)
    weights = {k: 2 * v for k, v in bundle.tensors("autoencoder").items()}
    other = write_part(bundle, "autoencoder", weights, bundle.part("autoencoder").config, {})
    with pytest.raises(BundleError, match="decodes the latents of another autoencoder"):
        load_decoder(other, CPU)
    for options, problem in (
        (["--out", tmp_path / "no"], "--decoder diffusion: no --init"),
        (["--init", out, "--out", tmp_path / "no", "--arch", "causal"], "beside it"),
        (["--init", out, "--out", tmp_path / "no", "--conditions", "ad"], "beside it"),
    ):
        code, _, err = cfgen(*given, *options)
        assert code == 2
        assert problem in err
        assert not (tmp_path / "no").exists()


@needs_data
def test_the_shipped_decoder_gives_more_of_a_brain_back_than_the_autoencoder():
    """A scan of split val."""
    bundle = read_bundle(DEFAULT_BUNDLE)
    finder = BrainFinder("auto", None, load_segmenter(bundle, CPU), CPU)
    path = DATA / "ixi" / "t1" / "IXI217_T1w.nii.gz"
    scan = open_scan(path, None, finder, bundle.preprocess, Gate(bundle.card))
    image = scan.prepared.image
    found = {}
    for kind in ("kl", "diffusion"):
        models = load_models(bundle, CPU, decoder=kind)
        made = models.decode(models.encode(torch.from_numpy(image)[None, None]))
        found[kind] = psnr(made[0, 0].numpy(), image, scan.prepared.mask)
    assert found["kl"] > 26
    assert found["diffusion"] > found["kl"] + 0.3
