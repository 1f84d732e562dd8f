"""Our networks give what MONAI's give with the same weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cfgen.nets.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    kl_divergence,
    pack_voxels,
    start_from_components,
    start_from_cosines,
    unpack_voxels,
)
from cfgen.nets.blocks import Downsample, ResBlock
from cfgen.nets.condition import Condition
from cfgen.nets.convert import autoencoder_from_monai, unet_from_monai
from cfgen.nets.unet import UNet, UNetConfig


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def randomised(net: torch.nn.Module) -> torch.nn.Module:
    """Weights that are nowhere zero, so that every path counts."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    return net.eval()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("context_dim", [None, 5])
@pytest.mark.parametrize(
    ("channels", "attention", "res_blocks"),
    [((16, 32), (False, True), 2), ((8, 16, 24), (False, True, True), 1)],
)
def test_unet_equals_monai(context_dim, channels, attention, res_blocks):
    from monai.networks.nets import DiffusionModelUNet

    torch.set_num_threads(2)
    theirs = randomised(
        DiffusionModelUNet(
            spatial_dims=3,
            in_channels=4,
            out_channels=3,
            num_res_blocks=res_blocks,
            channels=channels,
            attention_levels=attention,
            norm_num_groups=8,
            num_head_channels=8,
            with_conditioning=context_dim is not None,
            cross_attention_dim=context_dim,
        )
    )
    ours = UNet(
        UNetConfig(4, 3, channels, res_blocks, attention, 8, context_dim, norm_groups=8)
    ).eval()
    ours.load_state_dict(unet_from_monai(theirs.state_dict()))
    zt, t = torch.randn(2, 4, 8, 12, 4), torch.tensor([0, 731])
    context = None if context_dim is None else torch.randn(2, 3, context_dim)
    with torch.no_grad():
        expected = theirs(zt, t, context)
        assert relative(ours(zt, t, context), expected) < 1e-5
        last = torch.channels_last_3d
        found = ours.to(memory_format=last)(zt.contiguous(memory_format=last), t, context)
        assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("middle", [False, True])
def test_autoencoder_equals_monai(middle):
    from monai.networks.nets import AutoencoderKL

    theirs = randomised(
        AutoencoderKL(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            num_res_blocks=(1, 2, 1),
            channels=(8, 16, 16),
            attention_levels=(False, False, True),
            latent_channels=3,
            norm_num_groups=8,
            with_encoder_nonlocal_attn=middle,
            with_decoder_nonlocal_attn=middle,
        )
    )
    config = AutoencoderConfig(
        (8, 16, 16), (1, 2, 1), (False, False, True), 3, middle_attention=middle, norm_groups=8
    )
    ours = Autoencoder(config).eval()
    ours.load_state_dict(autoencoder_from_monai(theirs.state_dict()))
    x = torch.rand(2, 1, 16, 8, 12)
    with torch.no_grad():
        mean, sigma = theirs.encode(x)
        found_mean, found_sigma = ours.posterior(x)
        assert relative(found_mean, mean) < 1e-5
        assert relative(found_sigma, sigma) < 1e-5
        assert relative(ours.decode(mean), theirs.decode(mean)) < 1e-5


@pytest.mark.parametrize(
    ("net", "older"),
    [
        (ResBlock(4, 8, 2, 1e-6), {"skip_connection": "nin_shortcut"}),
        (torch.nn.Sequential(ResBlock(4, 8, 2, 1e-6, 3)), {"skip_connection": "nin_shortcut"}),
        (Downsample(4, padding=1), {"conv": "op"}),
    ],
)
def test_weights_of_either_name_are_read_and_others_are_not(net, older):
    state = randomised(net).state_dict()
    ((name, second),) = older.items()
    renamed = {
        ".".join(second if part == name else part for part in key.split(".")): value
        for key, value in state.items()
    }
    assert renamed.keys() != state.keys()
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    net.load_state_dict(renamed)
    assert all(
        torch.equal(value, renamed_value)
        for value, renamed_value in zip(net.state_dict().values(), renamed.values(), strict=True)
    )
    with pytest.raises(RuntimeError, match="Unexpected"):
        net.load_state_dict(renamed | {"opening.weight": torch.zeros(1)})


def test_a_block_starts_as_the_identity_with_time_alone():
    x = torch.randn(1, 4, 4, 4, 4)
    assert torch.equal(ResBlock(4, 4, 2, 1e-6, 3)(x, torch.randn(1, 3)), x)
    assert not torch.allclose(ResBlock(4, 4, 2, 1e-6)(x), x)


def test_unet_takes_edges_that_do_not_halve():
    net = randomised(UNet(UNetConfig(2, 2, (8, 8, 8), 1, (False,) * 3, 8, None, norm_groups=4)))
    zt, t = torch.randn(1, 2, 5, 6, 11), torch.tensor([3])
    with torch.no_grad():
        out = net(zt, t)
        moved = net(zt + torch.nn.functional.pad(torch.ones(1, 2, 1, 6, 11), [0] * 5 + [4]), t)
    assert out.shape == zt.shape
    assert (moved - out)[:, :, -1].abs().max() > 0


def test_batch_elements_do_not_see_each_other():
    net = randomised(UNet(UNetConfig(2, 2, (8, 16), 1, (False, True), 8, 4, norm_groups=4)))
    zt, t, context = torch.randn(2, 2, 4, 4, 4), torch.tensor([3, 500]), torch.randn(2, 2, 4)
    with torch.no_grad():
        both = net(zt, t, context)
        alone = net(zt[1:], t[1:], context[1:])
    assert relative(both[1:], alone) < 1e-6


def test_packing_is_undone_and_keeps_neighbours_together():
    x = torch.arange(2 * 8 * 4 * 6.0).reshape(1, 2, 8, 4, 6)
    packed = pack_voxels(x, 2)
    assert packed.shape == (1, 16, 4, 2, 3)
    assert set(packed[0, :8, 0, 0, 0].tolist()) == set(x[0, 0, :2, :2, :2].flatten().tolist())
    assert torch.equal(unpack_voxels(packed, 2), x)


@pytest.mark.parametrize("latent_channels", [1, 8, 64])
def test_training_starts_at_the_cosine_transform(latent_channels):
    """All 64 cosines of a 4 x 4 x 4 block give the image back; 8 give scipy's low-pass."""
    from scipy.fft import dctn, idctn

    config = AutoencoderConfig(
        (8, 16), (1, 1), (False, False), latent_channels, pack=2, norm_groups=8, linear_path=True
    )
    net = Autoencoder(config).eval()
    start_from_cosines(net)
    x = torch.rand(1, 1, 8, 8, 8)
    with torch.no_grad():
        rec = net(x)[0, 0, :4, :4, :4].numpy()
    coefficients = dctn(x[0, 0, :4, :4, :4].numpy(), norm="ortho")
    i, j, k = torch.meshgrid(*[torch.arange(4)] * 3, indexing="ij")
    order = torch.argsort((i**2 + j**2 + k**2).flatten(), stable=True)[latent_channels:]
    coefficients.reshape(-1)[order.numpy()] = 0
    assert abs(rec - idctn(coefficients, norm="ortho")).max() < 1e-5


def test_kl_of_the_prior_is_zero_and_matches_torch():
    mean, std = torch.randn(3, 2, 4, 4, 4), torch.rand(3, 2, 4, 4, 4) + 0.1
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, std), normal(0.0, 1.0))
    assert torch.allclose(kl_divergence(mean, std), expected.flatten(1).sum(1).mean(), rtol=1e-5)
    assert kl_divergence(torch.zeros_like(mean), torch.ones_like(std)) == 0


@pytest.mark.parametrize("conditioning", ["norm", "both"])
def test_conditions_come_in_through_every_norm(conditioning):
    """Without attention on any level but the middle's; which variable has a value counts."""
    net = UNet(UNetConfig(2, 2, (8,), 1, (False,), 8, 4, norm_groups=4, conditioning=conditioning))
    randomised(net)
    zt, t = torch.randn(2, 2, 4, 4, 4), torch.tensor([3, 500])
    tokens = Condition(torch.tensor([[1.0, -1], [0.5, 1]])).tokens()
    swapped = Condition(torch.tensor([[-1.0, 1], [1, 0.5]])).tokens()
    with torch.no_grad():
        out, other = net(zt, t, tokens), net(zt, t, swapped)
        alone = net(zt[1:], t[1:], tokens[1:])
        for up in net.up_blocks:
            for block in up.resnets:
                block.time_emb_proj.weight.zero_()
        net.middle_block.resnet_1.time_emb_proj.weight.zero_()
        net.middle_block.resnet_2.time_emb_proj.weight.zero_()
        for down in net.down_blocks:
            for block in down.resnets:
                block.time_emb_proj.weight.zero_()
        deaf = relative(net(zt, t, tokens), net(zt, t, swapped))
    assert relative(out, other) > 1e-4
    assert relative(out[1:], alone) < 1e-6
    # What is left is attention's.
    assert (deaf == 0) == (conditioning == "norm")


def test_an_adaptive_block_scales_and_shifts_its_second_norm():
    block = randomised(ResBlock(4, 4, 2, 1e-6, 3, adaptive=True))
    x, time = torch.randn(2, 4, 4, 4, 4), torch.randn(2, 3)
    with torch.no_grad():
        scale, shift = block.time_emb_proj(torch.nn.functional.silu(time)).split(4, 1)
        h = block.norm2(block.conv1(torch.nn.functional.silu(block.norm1(x))))
        h = h * (1 + scale[:, :, None, None, None]) + shift[:, :, None, None, None]
        expected = x + block.conv2(torch.nn.functional.silu(h))
        assert torch.allclose(block(x, time), expected, atol=1e-6)


def test_positions_tell_voxels_apart():
    """Of an input that is the same everywhere, and far from the edges."""
    shape = (8, 8, 6)
    config = UNetConfig(1, 1, (4,), 1, (False,), 4, None, norm_groups=2, positions=shape)
    net = randomised(UNet(config))
    zt, t = torch.ones(1, 1, *shape), torch.tensor([5])
    net.positions.data.zero_()
    with torch.no_grad():
        without = net(zt, t)
        net.positions.data[:, :, 4, 4, 3] = 1
        found = net(zt, t)
    assert relative(found, without) > 1e-2
    # Edges that do not halve: the features are continued as the input is.
    odd = replace(config, channels=(4, 4), attention=(False, False), positions=(5, 6, 7))
    assert UNet(odd)(torch.ones(1, 1, 5, 6, 7), t).shape == (1, 1, 5, 6, 7)


def test_a_folded_latent_of_all_components_loses_nothing_and_fewer_lose_the_least():
    config = AutoencoderConfig(
        (8, 16), (1, 1), (False, False), 3, norm_groups=8, pack=2, linear_path=True
    )
    inner = randomised(Autoencoder(config))
    x = torch.rand(6, 1, 16, 16, 16)
    with torch.no_grad():
        latents = inner.encode(x)
        lost = []
        for channels in (24, 20, 5):
            net = Autoencoder(replace(config, latent_channels=channels, folded_from=3)).eval()
            net.load_state_dict(inner.state_dict(), strict=False)
            start_from_components(net, latents)
            assert net.config.factor == 8
            assert net.encode(x).shape == (6, channels, 2, 2, 2)
            lost.append(float((net.unfold(net.encode(x)) - latents).square().sum()))
            if channels == 24:
                assert relative(net(x), inner(x)) < 1e-4
                # An orthonormal change of coordinates keeps the sum of variances of a block.
                _, std = net.posterior(x)
                _, before = inner.posterior(x)
                assert float(std.square().sum()) == pytest.approx(
                    float(before.square().sum()), rel=1e-4
                )
    blocks = pack_voxels(latents, 2).transpose(0, 1).flatten(1)
    squares = torch.linalg.svdvals(blocks).square()
    assert lost[1] == pytest.approx(float(squares[20:].sum()), rel=1e-2)
    assert lost[2] == pytest.approx(float(squares[5:].sum()), rel=1e-2)
