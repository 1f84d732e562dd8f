"""Train the diffusion decoder: voxels of images in noise, told their latents."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from cfgen.config import DECODING, FitConfig
from cfgen.device import autocast, channels_last, no_autocast
from cfgen.diffusion.schedule import Schedule, ScheduleConfig
from cfgen.edit.decoder import DiffusionDecoder, voxels
from cfgen.metrics.image import psnr
from cfgen.nets.blocks import set_checkpointing
from cfgen.nets.causal_autoencoder import AnyAutoencoder
from cfgen.nets.diffusion_decoder import DecoderConfig, DecoderNet, upsampled
from cfgen.progress import each
from cfgen.train.augmentation import AUGMENTATION, crop_start, random_acquisition, random_view
from cfgen.train.draws import each_its_own
from cfgen.train.fit import seed_weights
from cfgen.train.together import my_part

# Latents whose channels say how they are scaled.
SCALED_BY = 32
# As PCGM's: the latent says most of an image, and who says z0 need not pass the noise on.
SCHEDULE = ScheduleConfig(kind="cosine", prediction="z0")


@dataclass(frozen=True)
class DecoderRecipe:
    """The network, its schedule, and the crop of an image that a step sees."""

    net: DecoderConfig
    crop: tuple[int, int, int]
    schedule: ScheduleConfig = SCHEDULE

    def of(self, autoencoder: AnyAutoencoder) -> DecoderRecipe:
        """The same for latents of so many channels."""
        channels = autoencoder.config.latent_channels
        return replace(self, net=replace(self.net, latent_channels=channels))


RECIPE = DecoderRecipe(DecoderConfig((32, 64), 0), (48, 48, 48))


class DecoderTask:
    """`images` (N, D, H, W) and `held_out` on the model grid, `masks` of the held-out brains, and
    the trained autoencoder, which stays as it is."""

    critic: nn.Module | None = None

    def __init__(
        self,
        images: Tensor,
        weights: Tensor,
        held_out: Tensor,
        masks: Tensor,
        autoencoder: AnyAutoencoder,
        device: torch.device,
        fit: FitConfig,
        recipe: DecoderRecipe = RECIPE,
        checkpointing: bool = False,
    ) -> None:
        seed_weights(fit.seed)
        self.images, self.weights, self.held_out, self.masks = images, weights, held_out, masks
        self.device, self.fit = device, fit
        self.recipe = recipe.of(autoencoder)
        self.schedule = Schedule.make(self.recipe.schedule)
        self.autoencoder = channels_last(autoencoder, device).eval().requires_grad_(False)
        net = DecoderNet(self.recipe.net)
        set_checkpointing(net, checkpointing)
        self.net: DecoderNet = channels_last(net, device)
        multiple = self.recipe.net.multiple
        edges = zip(self.recipe.crop, images.shape[1:], strict=True)
        self.crop = tuple(min(c, n) // multiple * multiple for c, n in edges)
        self._scale()

    def _scale(self) -> None:
        """Put the training latents' mean and spread into the network."""
        step = -(-len(self.images) // SCALED_BY)
        some = self.images[::step]
        latents = torch.stack(
            [self.encode(x.float()[None, None])[0].cpu() for x in each(some, len(some), "latents")]
        ).transpose(0, 1)
        self.net.z_mean.copy_(latents.flatten(1).mean(1))
        self.net.z_std.copy_(latents.flatten(1).std(1).clamp(min=1e-6))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The posterior mean (B, C, d, h, w) float32 of images (B, 1, D, H, W)."""
        x = x.to(self.device, memory_format=torch.channels_last_3d)
        with autocast(self.device):
            return self.autoencoder.encode(x).float()

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        size, part = self.fit.batch_size, my_part(self.fit.batch_size)
        chosen = torch.multinomial(self.weights, size, replacement=True, generator=generator)
        # Stratified over the batch, as of latents.
        spread = (torch.rand(1, generator=generator) + torch.arange(size) / size) % 1
        T = self.schedule.T
        t = (1 + (spread * T).long().clamp(max=T - 1))[part]
        own = each_its_own(generator, size)[part]
        pairs = [
            self._pair(self.images[i], g) for i, g in zip(chosen[part].tolist(), own, strict=True)
        ]
        x = voxels(torch.cat([x for x, _ in pairs]).to(self.device))
        latent = torch.cat([z for _, z in pairs])
        eps = torch.cat([torch.randn(1, 1, *self.crop, generator=g) for g in own]).to(self.device)
        return self._error(self.net, x, latent, t, eps).mean(), {}

    def _pair(self, image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A crop (1, 1, D, H, W) of a view, and its part of the whole view's latent, which knows
        what lies around it."""
        shape, p = tuple(image.shape), self.recipe.net.pack
        with no_autocast(self.device):
            view = random_view(
                image.float(), (shape[0], shape[1], shape[2]), generator, AUGMENTATION
            )
            view = random_acquisition(view, generator, AUGMENTATION)
        latent = upsampled(self.encode(view[None, None]), shape, p)
        # On the network's own grid.
        m = self.recipe.net.multiple
        places = crop_start(
            tuple(n // m for n in shape), tuple(c // m for c in self.crop), generator
        )
        i, j, k = (slice(s * m, s * m + c) for s, c in zip(places, self.crop, strict=True))
        a, b, c = (slice(s.start // p, s.stop // p) for s in (i, j, k))
        return view[None, None, i, j, k], latent[:, :, a, b, c]

    def _error(self, net: nn.Module, x: Tensor, latent: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Squared error of the network's output, (B,)."""
        xt = self.schedule.add_noise(x, t, eps).contiguous(memory_format=torch.channels_last_3d)
        # The network counts noise levels from 0 (diffusion/guidance.py).
        output: Tensor = net(xt, (t - 1).to(self.device), latent).float()
        return (output - self.schedule.target(x, eps, t)).square().flatten(1).mean(1)

    def critic_loss(self, step: int) -> Tensor | None:
        return None

    @torch.no_grad()
    def report(self, net: nn.Module, picture: Path) -> dict[str, float]:
        """PSNR inside held-out brains, of this decoder (few steps, one noise) and of the
        autoencoder's own; it draws both beside the image."""
        assert isinstance(net, DecoderNet)
        _, d, h, w = self.held_out.shape
        brightest = float(self.images[0].max())
        decoder = DiffusionDecoder(net, self.schedule, (d, h, w), max(brightest, 1.2), self.device)
        figures: dict[str, list[float]] = {"psnr_db": [], "psnr_db_autoencoder": []}
        for image, mask in zip(self.held_out, self.masks, strict=True):
            z0 = self.encode(image.float()[None, None])
            made = decoder.decode(z0, [0], DECODING)[0, 0].cpu()
            with autocast(self.device):
                plain = self.autoencoder.decode(z0).float()[0, 0].cpu()
            for name, rec in zip(figures, (made, plain), strict=True):
                figures[name].append(psnr(rec.numpy(), image.float().numpy(), mask.numpy()))
        _draw(picture, [image.float(), made, plain])
        return {name: sum(values) / len(values) for name, values in figures.items()}


def _draw(path: Path, images: list[Tensor]) -> None:
    """Middle slices of image, diffusion decoder and autoencoder, in three planes."""
    from matplotlib.image import imsave

    rows = []
    for axis in range(3):
        tiles = [i.select(axis, i.shape[axis] // 2).T.flip(0).clamp(0, 1) for i in images]
        rows.append(torch.cat(tiles, 1))
    width = max(r.shape[1] for r in rows)
    rows = [nn.functional.pad(r, (0, width - r.shape[1])) for r in rows]
    imsave(path, torch.cat(rows).numpy(), cmap="gray", vmin=0, vmax=1)
