"""Train the autoencoder: L1, gradients, KL and a patch adversary (CDM 4.1; Rombach 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cfgen.config import FitConfig
from cfgen.device import autocast, channels_last, no_autocast
from cfgen.diffusion.samplers import noise_like
from cfgen.metrics.image import psnr
from cfgen.nets.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    kl_divergence,
    start_from_cosines,
)
from cfgen.nets.blocks import set_checkpointing
from cfgen.nets.causal_autoencoder import AnyAutoencoder, CausalAutoencoder, CausalConfig
from cfgen.train.ahead import Ahead
from cfgen.train.augmentation import AUGMENTATION, Augmentation, random_acquisition, random_view
from cfgen.train.draws import each_its_own
from cfgen.train.fit import seed_weights
from cfgen.train.together import my_part

# Four times the voxels a second of a plain stem, and three resolutions down to 20 x 24 x 22. The
# channels are what the detail of a 2 mm cortex needs: of the 64 cosines of a latent voxel's block
# the lowest 8 give 22.8 dB inside IXI brains, 16 give 26.0 and 24 give 28.1.
AUTOENCODER = AutoencoderConfig(
    channels=(48, 96),
    res_blocks=(1, 2),
    attention=(False, False),
    latent_channels=24,
    pack=2,
    linear_path=True,
)


@dataclass(frozen=True)
class AutoencoderLoss:
    """Weights of the loss terms; KL and adversarial weights are CDM's."""

    gradient: float = 0.5
    # Voxels outside the brain count little: an edit never writes them.
    background: float = 0.05
    kl: float = 1e-7
    # Of the sum over a latent, as in the code of Pinaya et al. 2022, or of the mean a voxel.
    kl_summed: bool = False
    adversarial: float = 0.005
    # The adversary joins when the reconstruction is near its final quality.
    adversarial_from: float = 0.9
    critic_channels: int = 16


CROP = (64, 80, 72)


def first_net(config: AutoencoderConfig | CausalConfig) -> AnyAutoencoder:
    """An autoencoder as training begins with it."""
    if isinstance(config, CausalConfig):
        return CausalAutoencoder(config)
    net = Autoencoder(config)
    if config.linear_path:
        start_from_cosines(net)
    return net


class AutoencoderTask:
    """`images` (N, D, H, W) and `held_out` on the model grid; `masks` of the held-out brains."""

    def __init__(
        self,
        images: Tensor,
        weights: Tensor,
        held_out: Tensor,
        masks: Tensor,
        device: torch.device,
        fit: FitConfig,
        net: AutoencoderConfig | CausalConfig = AUTOENCODER,
        loss: AutoencoderLoss = AutoencoderLoss(),
        augmentation: Augmentation = AUGMENTATION,
        crop: tuple[int, int, int] = CROP,
        checkpointing: bool = False,
    ) -> None:
        from monai.losses import PatchAdversarialLoss

        seed_weights(fit.seed)
        self.images, self.weights, self.held_out, self.masks = images, weights, held_out, masks
        self.device, self.weight, self.augmentation, self.fit = device, loss, augmentation, fit
        self.net = channels_last(first_net(net), device)
        set_checkpointing(self.net, checkpointing)
        self.crop = tuple(min(c, n) for c, n in zip(crop, images.shape[1:], strict=True))
        self.critic: nn.Module | None = self.first_critic()
        self.adversarial = PatchAdversarialLoss(criterion="least_squares")
        self.ahead = Ahead(self._views, fit.seed, device)

    def first_critic(self) -> nn.Module:
        from monai.networks.nets import PatchDiscriminator

        critic = PatchDiscriminator(
            spatial_dims=3, channels=self.weight.critic_channels, in_channels=1, norm="INSTANCE"
        )
        return channels_last(critic, self.device)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        views, own = self.ahead.batch(step, generator)
        x = views.to(self.device, memory_format=torch.channels_last_3d)
        mean, std = self.net.posterior(x)
        noise = noise_like(mean.float(), own)
        rec = self.net.decode(mean + std * noise).float()
        weight = torch.where(x > 0, 1.0, self.weight.background)
        l1 = (weight * (rec - x).abs()).mean()
        gradient = _gradient_difference(rec, x, weight)
        kl = kl_divergence(mean.float(), std.float())
        if not self.weight.kl_summed:
            # Like the other terms: a sum beside a mean L1 weighs 1e5 times as much.
            kl = kl / x[0].numel()
        total = l1 + self.weight.gradient * gradient + self.weight.kl * kl
        figures = {"l1": l1.item(), "gradient": gradient.item(), "kl": kl.item()}
        self._pair: tuple[Tensor, Tensor] | None = None
        if step >= self.weight.adversarial_from * self.fit.steps:
            assert self.critic is not None
            judged = self.critic(rec)[-1]
            fooled = self.adversarial(judged, target_is_real=True, for_discriminator=False)
            total = total + self.weight.adversarial * fooled
            figures["adversarial"] = fooled.item()
            self._pair = (x, rec.detach())
        return total, figures

    def _views(self, generator: torch.Generator) -> tuple[Tensor, list[torch.Generator]]:
        """This process's part of a batch (B, 1, D, H, W), and the generator of each element."""
        size, part = self.fit.batch_size, my_part(self.fit.batch_size)
        chosen = torch.multinomial(self.weights, size, replacement=True, generator=generator)
        own = each_its_own(generator, size)[part]
        # In bf16 a voxel would be looked for a quarter of a voxel beside where it is.
        with no_autocast(self.device):
            views = [
                self._view(self.images[i].float(), g)
                for i, g in zip(chosen[part].tolist(), own, strict=True)
            ]
        return torch.stack(views)[:, None], own

    def _view(self, image: Tensor, generator: torch.Generator) -> Tensor:
        d, h, w = self.crop
        view = random_view(image, (d, h, w), generator, self.augmentation)
        return random_acquisition(view, generator, self.augmentation)

    def critic_loss(self, step: int) -> Tensor | None:
        if self._pair is None or self.critic is None:
            return None
        real, fake = (self.critic(v)[-1] for v in self._pair)
        loss: Tensor = 0.5 * (
            self.adversarial(real, target_is_real=True, for_discriminator=True)
            + self.adversarial(fake, target_is_real=False, for_discriminator=True)
        )
        return loss

    @torch.no_grad()
    def report(self, net: nn.Module, picture: Path) -> dict[str, float]:
        psnrs = []
        for image, mask in zip(self.held_out, self.masks, strict=True):
            x = image.float()[None, None].to(self.device)
            with autocast(self.device):
                rec = net(x).float()
            psnrs.append(psnr(rec[0, 0].cpu().numpy(), image.float().numpy(), mask.numpy()))
        _draw(picture, image.float(), rec[0, 0].cpu())
        return {"psnr_db": sum(psnrs) / len(psnrs)}


def _gradient_difference(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean absolute difference of the forward differences along each axis."""
    error = a - b
    parts = [
        (weight.narrow(d, 1, weight.shape[d] - 1) * torch.diff(error, dim=d)).abs().mean()
        for d in (-3, -2, -1)
    ]
    return torch.stack(parts).mean()


def _draw(path: Path, image: Tensor, rec: Tensor) -> None:
    """Middle slices of image, reconstruction and their difference (grey is zero)."""
    from matplotlib.image import imsave

    difference = (rec - image) * 2 + 0.5
    rows = []
    for axis in range(3):
        middle = image.shape[axis] // 2
        tiles = [t.select(axis, middle).T.flip(0).clamp(0, 1) for t in (image, rec, difference)]
        rows.append(torch.cat(tiles, 1))
    width = max(r.shape[1] for r in rows)
    rows = [torch.nn.functional.pad(r, (0, width - r.shape[1])) for r in rows]
    imsave(path, torch.cat(rows).numpy(), cmap="gray", vmin=0, vmax=1)
