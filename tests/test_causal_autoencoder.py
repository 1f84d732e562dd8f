"""The causal autoencoder: what a slice is said to be rests on no later one; its loss; training."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from cfgen.bundle import read_bundle, write_part
from cfgen.config import FitConfig
from cfgen.data.volume import Volume, write_new
from cfgen.edit.latent import load_autoencoder
from cfgen.errors import BundleError, ToolError
from cfgen.nets.causal_autoencoder import CausalAutoencoder, CausalConfig
from cfgen.nets.lpips import BLOCKS, SCALE, SHIFT, Lpips, lpips_from
from cfgen.space.grids import model_grid
from cfgen.train.causal_autoencoder import (
    CHANNELS,
    VGG,
    Causal,
    CausalLoss,
    CausalTask,
    balance,
    hinge,
    read_lpips,
    slices_of,
)
from cfgen.train.latents import encode_views
from cfgen.train.presets import NETWORKS

CPU = torch.device("cpu")
SMALL = CausalConfig((8, 8, 16, 16), 1, 4, slices=88, norm_groups=4)
TINY = CausalConfig((8, 8, 8), 1, 4, slices=24, norm_groups=4)


def randomised(net, std=0.1):
    torch.manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return net.eval()


@pytest.fixture(scope="module")
def net():
    return randomised(CausalAutoencoder(SMALL))


@pytest.fixture(scope="module")
def image():
    return torch.rand(2, 1, 16, 24, 17, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("slices", "kept"), [(1, 1), (5, 2), (13, 4)])
def test_a_prefix_of_the_slices_has_the_prefix_of_the_encoding(net, image, slices, kept):
    with torch.no_grad():
        whole = net.posterior(image)
        prefix = net.posterior(image[..., :slices])
        for expected, found in zip(whole, prefix, strict=True):
            assert expected.shape == (2, 4, 2, 3, 5)
            assert found.shape == (2, 4, 2, 3, kept)
            assert torch.allclose(found, expected[..., :kept], atol=1e-5)


@pytest.mark.parametrize(("kept", "slices"), [(1, 1), (2, 5), (4, 13)])
def test_a_prefix_of_the_latent_has_the_prefix_of_the_decoding(net, kept, slices):
    z = torch.randn(2, 4, 2, 3, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, prefix = net.decode(z), net.decode(z[..., :kept])
    assert whole.shape == (2, 1, 16, 24, 17)
    assert prefix.shape == (2, 1, 16, 24, slices)
    assert torch.allclose(prefix, whole[..., :slices], atol=1e-5)


def test_a_slice_of_the_latent_knows_its_own_and_earlier_slices_alone(net, image):
    x = image[:1].clone().requires_grad_()
    mean = net.encode(x)
    for place in range(5):
        (gradient,) = torch.autograd.grad(mean[..., place].square().sum(), x, retain_graph=True)
        known = gradient.abs().sum((0, 1, 2, 3)) > 0
        assert not known[4 * place + 1 :].any()
        assert bool(known[: 4 * place + 1].all())
    # Attention and convolutions see all of a slice.
    (gradient,) = torch.autograd.grad(mean[0, 0, 0, 0, 0], x)
    assert bool((gradient[0, 0, :, :, 0] != 0).all())


def test_a_grid_of_any_number_of_slices_comes_back(net):
    x = torch.rand(1, 1, 16, 16, 88)
    with torch.no_grad():
        z = net.encode(x)
        assert z.shape[1:] == (4, 2, 2, 23)
        assert SMALL.latent_edges((80, 96, 88)) == (10, 12, 23)
        assert net(x).shape == x.shape
        # The last slice stands once more behind itself.
        last = torch.cat([x, x[..., -1:]], -1)
        assert torch.allclose(net.encode(last), z, atol=1e-5)
    # PCGM: 160 x 192 x 157 become 20 x 24 x 40.
    assert CausalConfig((128, 256, 512, 512), 2, 4, 157).latent_edges((160, 192, 157)) == (
        20,
        24,
        40,
    )


def test_views_for_training_of_latents_are_encoded(image):
    net = randomised(CausalAutoencoder(replace(SMALL, slices=17)))
    found = encode_views(net, image[:, 0], 2, CPU, 0)
    assert found.shape == (2, 2, 4, 2, 3, 5)
    with torch.no_grad():
        expected = net.encode(image)
    assert torch.allclose(found[:, 0].float(), expected, atol=2e-2, rtol=2e-2)


def task(lpips=None, **loss):
    images = torch.rand(3, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    axes = torch.meshgrid(*[torch.linspace(0.1, 1, 24)] * 3, indexing="ij")
    # Along each axis another course, so that its place is known.
    images = (axes[0] + 2 * axes[1] ** 3 + 0.2 * images) / 3
    how = Causal(TINY, 24, CausalLoss(critic_channels=4, **loss))
    masks = torch.ones(1, 24, 24, 24, dtype=torch.bool)
    fit = FitConfig(10, 1e-3, batch_size=2)
    return CausalTask(images, torch.ones(3), images[:1], masks, CPU, fit, how, lpips)


def test_planes_are_permuted_and_slices_have_their_form():
    made = task()
    seen = set()
    for number in range(60):
        view = made._view(made.images[0], torch.Generator().manual_seed(number))
        assert view.shape == (24, 24, 23)
        rises = [float(torch.diff(view, dim=d).abs().mean()) for d in range(3)]
        seen.add(tuple(np.argsort(rises)))
    assert len(seen) == 6


def test_both_terms_pull_alike_at_the_last_layer():
    last = torch.tensor([1.0, 2.0], requires_grad=True)
    likeness, fooled = 3 * last.sum(), (last * torch.tensor([0.3, -0.4])).sum()
    assert float(balance(likeness, fooled, last)) == pytest.approx(18**0.5 / 0.5, rel=1e-3)
    assert float(balance(likeness, 1e-12 * fooled, last)) == 1e4
    assert float(hinge(torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0]))) == 0.5 * (0.25 + 0.5)


def test_the_adversary_joins_late_and_sees_slices():
    made = task(adversarial_from=0.5)
    generator = torch.Generator().manual_seed(0)
    loss, figures = made.loss(4, generator)
    assert "adversarial" not in figures
    assert made.critic_loss(4) is None
    assert loss.item() == pytest.approx(figures["l1"] + 1e-6 * figures["kl"])
    loss, figures = made.loss(5, torch.Generator().manual_seed(0))
    expected = figures["l1"] + 1e-6 * figures["kl"]
    expected += 0.5 * figures["balance"] * figures["adversarial"]
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert made._pair[0].shape == (2 * 23, 1, 24, 24)
    assert made.critic_loss(5).item() > 0
    x = torch.arange(24.0).reshape(1, 1, 2, 3, 4)
    assert torch.equal(slices_of(x)[2, 0], x[0, 0, :, :, 2])


def test_it_learns():
    made = task(adversarial_from=2.0)
    adam = torch.optim.AdamW(made.net.parameters(), 5e-3)
    first = made.report(made.net, _nowhere())["psnr_db"]
    for step in range(20):
        loss, _ = made.loss(step, torch.Generator().manual_seed(step))
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert made.report(made.net, _nowhere())["psnr_db"] > first + 5


def _nowhere():
    return io.BytesIO()


def vgg_state():
    torch.manual_seed(0)
    state, place, width = {}, 0, 3
    for count, channels in BLOCKS:
        for _ in range(count):
            state[f"features.{place}.weight"] = (
                torch.randn(channels, width, 3, 3) * (2 / width / 9) ** 0.5
            )
            state[f"features.{place}.bias"] = 0.1 * torch.randn(channels)
            place, width = place + 2, channels
        place += 1
    lins = {f"lin{n}.model.1.weight": torch.rand(1, c, 1, 1) for n, (_, c) in enumerate(BLOCKS)}
    return state, lins


@pytest.fixture(scope="module")
def weights():
    return vgg_state()


def test_lpips_is_what_its_paper_says(weights):
    """Against the network written as torchvision has it, a list of layers."""
    net = lpips_from(*weights)
    torch.manual_seed(1)
    a, b = torch.rand(2, 1, 32, 32), torch.rand(2, 1, 32, 32)
    layers = []
    for count, _ in BLOCKS:
        for _ in range(count):
            place = len(layers)
            w, bias = (weights[0][f"features.{place}.{k}"] for k in ("weight", "bias"))
            conv = torch.nn.Conv2d(w.shape[1], w.shape[0], 3, padding=1)
            conv.weight.data, conv.bias.data = w, bias
            layers += [conv, torch.nn.ReLU()]
        layers.append(torch.nn.MaxPool2d(2))
    taps = (3, 8, 15, 22, 29)
    expected = torch.zeros(2)
    with torch.no_grad():
        pair = []
        for x in (a, b):
            h = (
                2 * x.expand(-1, 3, -1, -1) - 1 - torch.tensor(SHIFT)[:, None, None]
            ) / torch.tensor(SCALE)[:, None, None]
            kept = []
            for place, layer in enumerate(layers):
                h = layer(h)
                if place in taps:
                    kept.append(h / h.square().sum(1, keepdim=True).sqrt())
            pair.append(kept)
        for n, (of_a, of_b) in enumerate(zip(*pair, strict=True)):
            lin = weights[1][f"lin{n}.model.1.weight"]
            expected += ((of_a - of_b).square() * lin).sum(1).mean((1, 2))
        assert torch.allclose(net(a, b), expected, rtol=1e-4)
        assert net(a, a).tolist() == [0.0, 0.0]


def test_lpips_is_in_the_loss(weights):
    made = task(lpips_from(*weights), adversarial_from=2.0)
    loss, figures = made.loss(0, torch.Generator().manual_seed(0))
    assert figures["perceptual"] > 0
    assert loss.item() == pytest.approx(
        figures["l1"] + figures["perceptual"] + 1e-6 * figures["kl"], rel=1e-5
    )


def test_lpips_of_a_folder_without_its_weights(tmp_path):
    with pytest.raises(ToolError, match=r"vgg16.pth: cannot be read.*torchvision's vgg16"):
        read_lpips(tmp_path)
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / VGG)
    torch.save({}, tmp_path / CHANNELS)
    with pytest.raises(ToolError, match="does not fit"):
        read_lpips(tmp_path)
    assert isinstance(Lpips(), torch.nn.Module)


def test_the_command_makes_a_bundle_that_later_stages_take(cfgen, tmp_path, monkeypatch):
    grid = model_grid("t1w-2mm")
    rows = [["subject", "image", "split", "age", "sex"]]
    for n, (split, age, sex) in enumerate(
        [("train", 30, "M"), ("train", 60, "F"), ("val", 50, "F")]
    ):
        path = tmp_path / f"{n}.nii.gz"
        data = np.zeros(grid.shape, np.float32)
        data[20:60, 20:70, 20:60] = 0.5 + n / 10
        write_new(Volume(data, grid.affine), path, np.float32)
        rows.append([f"p{n}", path.name, split, age, sex])
    table = tmp_path / "manifest.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    small = Causal(
        CausalConfig((8, 8, 8, 8), 1, 4, slices=88, norm_groups=4),
        32,
        CausalLoss(critic_channels=4),
    )
    monkeypatch.setitem(NETWORKS, "t1w-2mm", replace(NETWORKS["t1w-2mm"], causal=small))
    given = ("--manifest", table, "--threads", 1, "--steps", 1)
    code, _, err = cfgen("train-ae", *given, "--arch", "causal", "--out", tmp_path / "ae")
    assert code == 0, err
    assert "no LPIPS in the loss" in err
    bundle = read_bundle(tmp_path / "ae")
    assert bundle.part("autoencoder").config["arch"] == "causal"
    assert isinstance(load_autoencoder(bundle, CPU), CausalAutoencoder)
    more = ("--bundle", tmp_path / "ae", "--out", tmp_path / "ldm", "--batch-size", 2, "--dry-run")
    code, said, err = cfgen("train-ldm", *given, *more)
    assert code == 0, err
    assert "latent diffusion: " in said
    config = bundle.part("autoencoder").config | {"arch": "round"}
    other = write_part(bundle, "autoencoder", bundle.tensors("autoencoder"), config, {})
    with pytest.raises(BundleError, match="kind 'round'; expected plain or causal"):
        load_autoencoder(other, CPU)
    code, _, err = cfgen("train-ae", *given, "--lpips", tmp_path, "--out", tmp_path / "no")
    assert code == 2
    assert "--lpips: with --arch plain" in err
