"""Attention after the UNet's way down, and guidance in z0."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cfgen.diffusion.guidance import guided, guided_z0
from cfgen.diffusion.schedule import Schedule, ScheduleConfig
from cfgen.nets.blocks import AttentionBlock
from cfgen.nets.unet import UNet, UNetConfig

SMALL = UNetConfig(4, 4, (8, 16), 1, (False, True), 8, 5, norm_groups=4)


def randomised(net):
    torch.manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


@pytest.mark.parametrize("context_dim", [None, 5])
def test_blocks_of_attention_start_as_the_identity(context_dim):
    torch.manual_seed(0)
    plain = UNet(replace(SMALL, context_dim=context_dim))
    torch.nn.init.normal_(plain.out[2].weight)
    with_blocks = UNet(replace(SMALL, context_dim=context_dim, attention_blocks=4))
    # Nothing of the others is named anew.
    missing, unexpected = with_blocks.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in missing} == {"attention_blocks"}
    zt, t = torch.randn(2, 4, 5, 6, 7), torch.tensor([3, 700])
    context = None if context_dim is None else torch.randn(2, 3, 5)
    with torch.no_grad():
        assert torch.equal(with_blocks(zt, t, context), plain(zt, t, context))
        for block in with_blocks.attention_blocks:
            for layer in block.layers.values():
                torch.nn.init.normal_(layer.out_proj.weight)
        assert not torch.allclose(with_blocks(zt, t, context), plain(zt, t, context))


def block_inputs():
    torch.manual_seed(1)
    x = torch.randn(1, 16, 3, 4, 5, requires_grad=True)
    return x, torch.randn(1, 32, requires_grad=True), torch.randn(1, 3, 5, requires_grad=True)


def test_every_voxel_sees_every_voxel():
    """Of other slices along any axis too: volumes, not slices."""
    block = randomised(AttentionBlock(16, 2, 5, 32))
    x, time, context = block_inputs()
    out = block(x, time, context)
    (gradient,) = torch.autograd.grad(out[0, :, 0, 0, 0].square().sum(), x)
    assert bool((gradient.abs().sum(1) > 0).all())


@pytest.mark.parametrize("which", ["time", "condition"])
def test_voxels_choose_what_they_take_of_time_and_conditions(which):
    """To one token alone attention would give all voxels the same."""
    block = randomised(AttentionBlock(16, 2, 5, 32))
    x, time, context = block_inputs()
    del block.layers["self"]
    before = block(x, time, context)
    more = torch.randn_like(time), torch.randn_like(context)
    other = (more[0], context) if which == "time" else (time, more[1])
    change = (block(x, *other) - before).detach()
    spread = change.flatten(2).std(2).mean()
    assert change.abs().mean() > 1e-3
    assert spread > 1e-2 * change.abs().mean()


def test_a_conditional_block_needs_its_context():
    x, time, _ = block_inputs()
    with pytest.raises(ValueError, match="needs a context"):
        AttentionBlock(16, 2, 5, 32)(x, time, None)


@pytest.mark.parametrize("prediction", ["v", "eps", "z0"])
def test_guidance_in_z0_is_guidance(prediction):
    schedule = Schedule.make(ScheduleConfig("scaled_linear", prediction))
    torch.manual_seed(0)
    zt, t = torch.randn(2, 3, 4, 4, 4), torch.tensor([300, 700])

    def net(z, level, context):
        return torch.tanh(
            z + context[:, :1, None, None, None] * level[:, None, None, None, None] / 500
        )

    told, nothing = torch.ones(2, 1), torch.zeros(2, 1)
    for weight in (0.0, 1.0, 3.0):
        expected = guided(net, told, nothing, weight)(zt, t)
        found = guided_z0(net, told, nothing, weight, schedule)(zt, t)
        assert torch.allclose(found, expected, atol=1e-4)


def test_a_rescaled_guidance_has_the_spread_of_the_condition():
    schedule = Schedule.make(ScheduleConfig("cosine", "v"))
    torch.manual_seed(0)
    zt, t = torch.randn(2, 3, 4, 4, 4), torch.tensor([300, 700])
    pattern = torch.randn(1, 3, 4, 4, 4)

    def net(z, level, context):
        return z * 0.2 + context[:, :1, None, None, None] * pattern

    told, nothing = torch.ones(2, 1), -torch.ones(2, 1)

    def spread(denoiser):
        z0, _ = schedule.z0_and_eps(denoiser(zt, t), zt, t)
        return z0.flatten(1).std(1)

    under = spread(guided(net, told, nothing, 1.0))
    plain, back = (
        spread(guided_z0(net, told, nothing, 4.0, schedule, rescale)) for rescale in (0.0, 1.0)
    )
    assert bool((plain > 1.5 * under).all())
    assert torch.allclose(back, under, rtol=1e-4)
    half = spread(guided_z0(net, told, nothing, 4.0, schedule, 0.5))
    assert torch.allclose(half, (plain + under) / 2, rtol=1e-4)
