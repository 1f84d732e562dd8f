"""Train latent diffusion: the conditional mean in closed form, then a UNet on the residual."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cfgen.causal.latent_mean import LatentMean, fit_latent_mean
from cfgen.config import FitConfig
from cfgen.device import autocast, channels_last
from cfgen.diffusion.samplers import denoise_dpmpp_2m
from cfgen.diffusion.schedule import Schedule, ScheduleConfig, time_grid
from cfgen.nets.autoencoder import Autoencoder
from cfgen.nets.condition import Condition, token_width
from cfgen.nets.unet import UNet, UNetConfig
from cfgen.progress import each
from cfgen.streams import Purpose, torch_stream
from cfgen.train.augmentation import AUGMENTATION, mirror, random_acquisition, random_view
from cfgen.train.fit import seed_weights

SCHEDULE = ScheduleConfig(kind="cosine", prediction="v")


@dataclass(frozen=True)
class LatentDiffusionConfig:
    schedule: ScheduleConfig = SCHEDULE
    # Conditions are withheld this often, for classifier-free guidance.
    drop_conditions: float = 0.1
    # Latents a subject: itself, its mirror image, and warped views.
    views: int = 4
    latent_mean: bool = True


LATENT_DIFFUSION = LatentDiffusionConfig()


def unet_config(variables: int, latent_channels: int) -> UNetConfig:
    """The shipped network for a latent of 20 x 24 x 22."""
    return UNetConfig(
        in_channels=latent_channels,
        out_channels=latent_channels,
        channels=(64, 64, 96),
        res_blocks=1,
        attention=(False, True, True),
        head_channels=32,
        context_dim=token_width(variables),
        norm_groups=16,
    )


@torch.inference_mode()
def encode_views(
    autoencoder: Autoencoder, images: Tensor, views: int, device: torch.device, seed: int
) -> Tensor:
    """Latents (N, views, C, d, h, w) float16 of each image, its mirror image and warped views."""
    shape = (images.shape[1], images.shape[2], images.shape[3])
    bank = []
    for number, image in each(enumerate(images.float()), len(images), "subjects encoded"):
        generator = torch_stream(seed, Purpose.VIEWS, number)
        seen = [image, mirror(image)]
        for _ in range(views - 2):
            view = random_view(image, shape, generator, AUGMENTATION)
            seen.append(random_acquisition(view, generator, AUGMENTATION))
        latents = []
        for view in seen[:views]:
            x = view[None, None].to(device, memory_format=torch.channels_last_3d)
            with autocast(device):
                latents.append(autoencoder.encode(x)[0].half().cpu())
        bank.append(torch.stack(latents))
    return torch.stack(bank)


def fit_mean(
    latents: Tensor, conditions: Tensor, weights: Tensor, continuous: Tensor, use_conditions: bool
) -> LatentMean:
    """The latent mean over all views; without conditions it is the mean and scale alone."""
    views = latents.shape[1]
    z0 = latents.flatten(0, 1).float()
    c = conditions.repeat_interleave(views, 0)
    w = weights.repeat_interleave(views)
    if use_conditions:
        return fit_latent_mean(z0, c, w, continuous)
    mean = z0.mean(0)
    sigma = (z0 - mean).transpose(0, 1).flatten(1).std(1)[:, None, None, None]
    features = 1 + conditions.shape[1]
    coefficients = torch.zeros(features, *mean.shape)
    coefficients[0] = mean
    knots = torch.full((conditions.shape[1], 4), torch.nan)
    return LatentMean(knots, coefficients, sigma, torch.ones(1))


class LatentDiffusionTask:
    """`latents` (N, views, C, d, h, w), `conditions` (N, V) and sampling `weights` (N,)."""

    critic: nn.Module | None = None

    def __init__(
        self,
        latents: Tensor,
        conditions: Tensor,
        weights: Tensor,
        held_out: tuple[Tensor, Tensor],
        latent_mean: LatentMean,
        device: torch.device,
        fit: FitConfig,
        config: LatentDiffusionConfig = LATENT_DIFFUSION,
    ) -> None:
        seed_weights(fit.seed)
        self.latents, self.conditions, self.weights = latents, conditions, weights
        self.mean, self.held_out, self.device = latent_mean, held_out, device
        self.fit, self.config = fit, config
        self.schedule = Schedule.make(config.schedule)
        net = UNet(unet_config(conditions.shape[1], latents.shape[2]))
        self.net = channels_last(net, device)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        size = self.fit.batch_size
        chosen = torch.multinomial(self.weights, size, replacement=True, generator=generator)
        views = torch.randint(self.latents.shape[1], (size,), generator=generator)
        c = self.conditions[chosen]
        r = self.mean.residual(self.latents[chosen, views].float(), c)
        # Stratified over the batch: the same mean loss with less noise (Kingma et al. 2021).
        spread = (torch.rand(1, generator=generator) + torch.arange(size) / size) % 1
        last = len(self.schedule.alpha_bar) - 1
        t = 1 + (spread * last).long().clamp(max=last - 1)
        eps = torch.randn(r.shape, generator=generator)
        dropped = torch.rand(size, generator=generator) < self.config.drop_conditions
        return self._error(self.net, r, Condition(c), t, eps, dropped).mean(), {}

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
        tokens = c.to(self.device).tokens(dropped)
        # The network counts noise levels from 0 (diffusion/guidance.py).
        output: Tensor = net(zt, (t - 1).to(self.device), tokens).float()
        return (output - self.schedule.target(r, eps, t)).square().flatten(1).mean(1)

    def critic_loss(self, step: int) -> Tensor | None:
        return None

    @torch.no_grad()
    def report(self, net: nn.Module, picture: Path) -> dict[str, float]:
        """Held-out error at fixed noise, at an early, middle and late level."""
        latents, c = self.held_out
        r = self.mean.residual(latents.float(), c)
        generator = torch_stream(0, Purpose.PICTURES)
        eps = torch.randn(r.shape, generator=generator)
        figures = {}
        for level in (100, 400, 700):
            t = torch.full((len(r),), level)
            with autocast(self.device):
                error = self._error(net, r, Condition(c), t, eps)
            figures[f"error_t{level}"] = float(error.mean())
        self._draw(net, picture, c[:4])
        return figures

    def _draw(self, net: nn.Module, picture: Path, c: Tensor) -> None:
        """Middle slices of the first channel of new latents, sampled under held-out conditions."""
        from matplotlib.image import imsave

        shape = (len(c), *self.latents.shape[2:])
        generator = torch_stream(0, Purpose.PICTURES, step=1)
        noise = torch.randn(shape, generator=generator).to(self.device)
        tokens = Condition(c).to(self.device).tokens()

        def denoise(zt: Tensor, t: Tensor) -> Tensor:
            with autocast(self.device):
                output: Tensor = net(zt, t - 1, tokens).float()
            return output

        times = time_grid(10, len(self.schedule.alpha_bar) - 1)
        r = denoise_dpmpp_2m(denoise, self.schedule, noise, times).cpu()
        z0 = self.mean.latent(r, c)[:, 0]
        middle = z0[..., z0.shape[-1] // 2]
        imsave(picture, torch.cat(list(middle), 1).numpy(), cmap="gray")
