"""Train latent diffusion: the conditional mean in closed form, then a UNet on the residual."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cfgen.causal.latent_mean import LatentMean
from cfgen.config import (
    CONDITIONING,
    LATENT_SCALE,
    LOSS_WEIGHTS,
    Conditioning,
    FitConfig,
    LatentScale,
    LossWeights,
    Prediction,
)
from cfgen.device import autocast, channels_last
from cfgen.diffusion.drift import NO_DRIFT, Drift
from cfgen.diffusion.preconditioning import v_of
from cfgen.diffusion.samplers import denoise_dpmpp_2m
from cfgen.diffusion.schedule import Schedule, ScheduleConfig, time_grid
from cfgen.diffusion.weights import loss_weights
from cfgen.errors import UsageError
from cfgen.nets.blocks import set_checkpointing
from cfgen.nets.condition import Condition, token_width
from cfgen.nets.unet import Trunk, UNet, UNetConfig
from cfgen.streams import Purpose, torch_stream
from cfgen.train.ahead import Ahead
from cfgen.train.fit import seed_weights
from cfgen.train.latents import LatentData, LatentReader
from cfgen.train.together import my_part

SCHEDULE = ScheduleConfig(kind="cosine", prediction="v")
# A network that says eps divides by the signal: it needs some at the last level.
SCHEDULES = {
    "v": SCHEDULE,
    "eps": ScheduleConfig(kind="scaled_linear", prediction="eps"),
    "z0": ScheduleConfig(kind="cosine", prediction="z0"),
}


@dataclass(frozen=True)
class LatentDiffusionConfig:
    schedule: ScheduleConfig = SCHEDULE
    # Conditions are withheld this often, for classifier-free guidance.
    drop_conditions: float = 0.1
    # Latents a subject: itself, its mirror image, and warped views.
    views: int = 4
    latent_mean: bool = True
    latent_scale: LatentScale = LATENT_SCALE
    loss_weights: LossWeights = LOSS_WEIGHTS
    conditioning: Conditioning = CONDITIONING
    # Whether each voxel of the latent has features of its own in the network.
    positions: bool = False
    # Of the network, after its way down.
    attention_blocks: int = 0
    # Channels of the network, finest level first; None are those for the size of the latent.
    channels: tuple[int, ...] | None = None
    # Which levels attend; None: all but the finest.
    attention: tuple[bool, ...] | None = None
    res_blocks: int = 1
    head_channels: int = 32
    norm_groups: int = 16
    # Less memory for more time (nets/blocks.py).
    checkpointing: bool = False
    # Of the forward process (diffusion/drift.py).
    drift: Drift = NO_DRIFT
    # How many inputs each variable has, where it is one token; and how often it is left unsaid, by
    # itself, so that a scan of which not all is known is no surprise.
    inputs: tuple[int, ...] = ()
    unsaid: tuple[float, ...] = ()
    # Slices instead of latents (nets/unet.py).
    flat: bool = False


LATENT_DIFFUSION = LatentDiffusionConfig()


def check_scale(config: LatentDiffusionConfig) -> None:
    """Raises UsageError where the network is told a spread and does not say v."""
    said = config.schedule.prediction
    if config.latent_scale == "voxel" and said != "v":
        raise UsageError(
            "--latent-scale", f"voxel with a network that says {said}", "one that says v"
        )


def schedule_for(prediction: Prediction) -> ScheduleConfig:
    """The schedule on which a prediction is trained here."""
    return SCHEDULES[prediction]


# Latents of fewer voxels have the network for 10 x 12 x 11, the others that for 20 x 24 x 22.
SMALL_VOXELS = 3000


def unet_config(
    variables: int, shape: tuple[int, int, int, int], config: LatentDiffusionConfig
) -> UNetConfig:
    """The network for so many inputs of the condition vector and latents (C, d, h, w)."""
    latent_channels, d, h, w = shape
    usual = (64, 128) if d * h * w < SMALL_VOXELS else (64, 64, 96)
    channels = config.channels or usual
    return UNetConfig(
        in_channels=latent_channels,
        out_channels=latent_channels,
        channels=channels,
        res_blocks=config.res_blocks,
        attention=config.attention or (False, *[True] * (len(channels) - 1)),
        head_channels=config.head_channels,
        context_dim=token_width(variables),
        norm_groups=config.norm_groups,
        conditioning=config.conditioning,
        positions=(d, h, w) if config.positions else None,
        attention_blocks=config.attention_blocks,
        inputs=config.inputs,
        flat=config.flat,
    )


def some_unsaid(
    c: Tensor, inputs: tuple[int, ...], unsaid: tuple[float, ...], generator: torch.Generator
) -> Tensor:
    """Conditions (B, V) of which each variable, of so many `inputs`, is 0 this often."""
    kept = torch.rand(len(c), len(inputs), generator=generator) >= torch.tensor(unsaid)
    return c * kept.repeat_interleave(torch.tensor(inputs), 1)


@dataclass(frozen=True)
class Batch:
    """Residuals `r` (B, C, d, h, w) under conditions `c`, times `t` (B,), noise `eps` as r, and of
    whom the conditions are withheld (B,)."""

    r: Tensor
    c: Condition
    t: Tensor
    eps: Tensor
    dropped: Tensor

    def part(self, which: slice) -> Batch:
        """Some of its elements."""
        r, t, eps = self.r[which], self.t[which], self.eps[which]
        return Batch(r, self.c.part(which), t, eps, self.dropped[which])


class LatentDiffusionTask:
    """`reader` follows, in reports, how a number that is asked for appears in new latents. With
    `net` the training goes on from its weights."""

    critic: nn.Module | None = None

    def __init__(
        self,
        data: LatentData,
        latent_mean: LatentMean,
        device: torch.device,
        fit: FitConfig,
        config: LatentDiffusionConfig = LATENT_DIFFUSION,
        reader: LatentReader | None = None,
        net: Trunk | None = None,
    ) -> None:
        seed_weights(fit.seed)
        self.data, self.mean, self.device = data, latent_mean, device
        self.fit, self.config, self.reader = fit, config, reader
        self.schedule = Schedule.make(config.schedule)
        self.spread = None if latent_mean.spread is None else latent_mean.spread.to(device)
        if net is None:
            net = UNet(unet_config(data.conditions.shape[1], data.shape, config))
        set_checkpointing(net, config.checkpointing)
        self.net: Trunk = channels_last(net, device)
        self._ahead = Ahead(self.batch, fit.seed, device)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return self.batch_loss(self._ahead.batch(step, generator)), {}

    def batch_loss(self, batch: Batch) -> Tensor:
        """Of this process's part of a whole batch."""
        batch = batch.part(my_part(self.fit.batch_size))
        error = self._error(self.net, batch.r, batch.c, batch.t, batch.eps, batch.dropped)
        weights = loss_weights(self.config.loss_weights, self.schedule, batch.t)
        return (weights.to(error) * error).mean()

    def batch(self, generator: torch.Generator, data: LatentData | None = None) -> Batch:
        """The whole batch, of which a process takes its part; of other data where there are."""
        size, data = self.fit.batch_size, data or self.data
        chosen = torch.multinomial(data.weights, size, replacement=True, generator=generator)
        views = torch.randint(data.latents.shape[1], (size,), generator=generator)
        c = data.conditions[chosen]
        r = self.mean.residual(data.latents[chosen, views].float(), c)
        # Stratified over the batch: the same mean loss with less noise (Kingma et al. 2021).
        spread = (torch.rand(1, generator=generator) + torch.arange(size) / size) % 1
        last = len(self.schedule.alpha_bar) - 1
        t = 1 + (spread * last).long().clamp(max=last - 1)
        eps = torch.randn(r.shape, generator=generator)
        dropped = torch.rand(size, generator=generator) < self.config.drop_conditions
        masks = None if data.masks is None else data.masks[chosen, views]
        if self.config.unsaid:
            c = some_unsaid(c, self.config.inputs, self.config.unsaid, generator)
        return Batch(r, Condition(c, masks), t, eps, dropped)

    def _error(
        self,
        net: nn.Module,
        r: Tensor,
        c: Condition,
        t: Tensor,
        eps: Tensor,
        dropped: Tensor | None = None,
    ) -> Tensor:
        """Squared error of the network's output, a value an element."""
        r, eps = r.to(self.device), eps.to(self.device)
        zt = self.schedule.add_noise(r, t, eps).contiguous(memory_format=torch.channels_last_3d)
        output = self.ask(net, zt, t, c, dropped)
        return (output - self.schedule.target(r, eps, t)).square().flatten(1).mean(1)

    def ask(
        self, net: nn.Module, zt: Tensor, t: Tensor, c: Condition, dropped: Tensor | None = None
    ) -> Tensor:
        """What the network means at zt (B, C, d, h, w), which drift has not moved yet, and times t
        (B,), float32."""
        # The network counts noise levels from 0 (diffusion/guidance.py).
        level = (t - 1).to(self.device)
        moved = self.config.drift.plus(zt)
        output = self.forward(net, moved, level, c.to(self.device), dropped).float()
        return v_of(output, zt, t, self.schedule, self.spread)

    def forward(
        self, net: nn.Module, zt: Tensor, level: Tensor, c: Condition, dropped: Tensor | None
    ) -> Tensor:
        """The network itself, at noise levels that count from 0."""
        output: Tensor = net(zt, level, c.tokens(dropped))
        return output

    def critic_loss(self, step: int) -> Tensor | None:
        return None

    @torch.no_grad()
    def report(self, net: nn.Module, picture: Path) -> dict[str, float]:
        """Held-out error at fixed noise, at an early, middle and late level; with a reader, how a
        number that is asked for appears in new latents (`sampled_figures`)."""
        c = self.data.held_out_conditions
        r = self.mean.residual(self.data.held_out.float(), c)
        generator = torch_stream(0, Purpose.PICTURES)
        eps = torch.randn(r.shape, generator=generator)
        figures = {}
        for level in (100, 400, 700):
            t = torch.full((len(r),), level)
            with autocast(self.device):
                error = self._error(net, r, Condition(c), t, eps)
            figures[f"error_t{level}"] = float(error.mean())
        if self.reader is None:
            draw_latents(picture, self._sample(net, Condition(c[:DRAWN])))
            return figures
        young, old = (self._sample(net, Condition(told)) for told in self._ends(self.reader, c))
        draw_latents(picture, torch.cat([young[: DRAWN // 2], old[: DRAWN // 2]]))
        heard = self._heard(net, self.reader, r, c)
        return figures | sampled_figures(self.reader, young, old) | {"heard": heard}

    def _ends(self, reader: LatentReader, c: Tensor) -> list[Tensor]:
        """Held-out conditions with one standard deviation less, and more, than the mean."""
        ends = []
        for value in (-1.0, 1.0):
            told = c[:SAMPLED].clone()
            told[:, reader.variable] = value
            ends.append(told)
        return ends

    def _heard(self, net: nn.Module, reader: LatentReader, r: Tensor, c: Tensor) -> float:
        """How far the network's z0 moves when in noise it is told a high value instead of a low
        one, along the training latents' own difference, and over it: 1 where nothing else can tell
        the value, 0 where the condition is not heard."""
        r = r[:SAMPLED]
        t = torch.full((len(r),), round(HEARD_AT * self.schedule.T))
        eps = torch.randn(r.shape, generator=torch_stream(0, Purpose.PICTURES, step=2))
        zt = self.schedule.add_noise(r, t, eps).to(self.device)
        ends = []
        for told in self._ends(reader, c):
            with autocast(self.device):
                output = self.ask(net, zt, t, Condition(told))
            estimate, _ = self.schedule.z0_and_eps(output, zt, t)
            ends.append(self.mean.latent(estimate.cpu(), told))
        moved = ends[1] - ends[0]
        return float((moved * reader.shift).sum() / (len(r) * reader.shift.square().sum()))

    def _sample(self, net: nn.Module, c: Condition) -> Tensor:
        """New latents, one for each condition, always of the same noises."""
        generator = torch_stream(0, Purpose.PICTURES, step=1)
        noise = torch.randn((len(c), *self.data.shape), generator=generator)
        times = time_grid(SAMPLED_STEPS, len(self.schedule.alpha_bar) - 1)
        made = []
        for first in range(0, len(c), 8):
            some = slice(first, first + 8)
            asked = c.part(some)

            def denoise(zt: Tensor, t: Tensor, asked: Condition = asked) -> Tensor:
                with autocast(self.device):
                    return self.ask(net, zt, t, asked)

            zt = noise[some].to(self.device)
            r = denoise_dpmpp_2m(denoise, self.schedule, zt, times).cpu()
            made.append(self.mean.latent(r, asked.vector))
        return torch.cat(made)


# New latents of a report: so many are drawn, so many pairs are read, in so many steps. They cost as
# much as some forty steps of training.
DRAWN, SAMPLED, SAMPLED_STEPS = 4, 6, 10
# Of the noise levels, the one at which it is asked whether the condition is heard.
HEARD_AT = 0.99


def sampled_figures(reader: LatentReader, young: Tensor, old: Tensor) -> dict[str, float]:
    """Slope of what is read on what was asked for, of new latents of the same noises that were
    asked for -1 and for 1, over the reader's slope on true ones; and its standard error."""
    slopes = (reader.read(old) - reader.read(young)) / (2 * reader.slope)
    error = float(slopes.std() / len(slopes) ** 0.5) if len(slopes) > 1 else float("nan")
    return {"read_slope": float(slopes.mean()), "read_slope_se": error}


def draw_latents(picture: Path, latents: Tensor) -> None:
    """Middle slices of the first channel."""
    from matplotlib.image import imsave

    z0 = latents[:, 0]
    middle = z0[:, 0] if z0.shape[1] == 1 else z0[..., z0.shape[-1] // 2]
    imsave(picture, torch.cat(list(middle), 1).numpy(), cmap="gray")
