"""Train the causal autoencoder: L1, LPIPS, KL, and an adversary of slices (PCGM, section 4.1, with
the loss and the schedule of OpenSora's CausalVAE)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfgen.config import FitConfig
from cfgen.diffusion.samplers import noise_like
from cfgen.errors import ToolError
from cfgen.nets.autoencoder import kl_divergence
from cfgen.nets.causal_autoencoder import CausalAutoencoder, CausalConfig
from cfgen.nets.lpips import Lpips, lpips_from
from cfgen.train.augmentation import random_acquisition, random_view
from cfgen.train.autoencoder import AutoencoderLoss, AutoencoderTask
from cfgen.train.together import average


@dataclass(frozen=True)
class CausalLoss(AutoencoderLoss):
    """`adversarial` is times what makes both gradients at the last layer as long (`balance`). The
    adversary, of slices, joins after 2,000 of 40,000 steps."""

    gradient: float = 0.0
    background: float = 1.0
    kl: float = 1e-6
    adversarial: float = 0.5
    adversarial_from: float = 0.05
    critic_channels: int = 64
    perceptual: float = 1.0


@dataclass(frozen=True)
class Causal:
    """A network and its loss; in a step it sees a cube of `edge` voxels, less what is too much for
    its number of slices."""

    net: CausalConfig
    edge: int
    loss: CausalLoss = CausalLoss()

    def on(self, shape: tuple[int, int, int]) -> Causal:
        """The same for images of another grid."""
        return replace(self, net=replace(self.net, slices=shape[2]))


CAUSAL = Causal(
    CausalConfig((24, 48, 96, 96), 1, 16, slices=88, norm_groups=8),
    edge=64,
    loss=CausalLoss(critic_channels=16),
)


class CausalTask(AutoencoderTask):
    """As `AutoencoderTask`; without `lpips` that term is left out. The planes of every view are
    permuted, so that the encoding owes nothing to the plane of acquisition."""

    weight: CausalLoss
    net: CausalAutoencoder

    def __init__(
        self,
        images: Tensor,
        weights: Tensor,
        held_out: Tensor,
        masks: Tensor,
        device: torch.device,
        fit: FitConfig,
        how: Causal = CAUSAL,
        lpips: Lpips | None = None,
        checkpointing: bool = False,
    ) -> None:
        edge = min(how.edge, *(n // how.net.factor * how.net.factor for n in images.shape[1:]))
        super().__init__(
            images,
            weights,
            held_out,
            masks,
            device,
            fit,
            how.net,
            how.loss,
            crop=(edge, edge, edge),
            checkpointing=checkpointing,
        )
        # The largest number of slices of the right form that the cube has.
        self.slices = (edge - 1) // how.net.slice_factor * how.net.slice_factor + 1
        self.lpips = None if lpips is None else lpips.to(device)

    def first_critic(self) -> nn.Module:
        from monai.networks.nets import PatchDiscriminator

        critic: nn.Module = PatchDiscriminator(
            spatial_dims=2, channels=self.weight.critic_channels, in_channels=1, norm="INSTANCE"
        )
        return critic.to(self.device)

    def _view(self, image: Tensor, generator: torch.Generator) -> Tensor:
        d, h, w = self.crop
        view = random_view(image, (d, h, w), generator, self.augmentation)
        view = random_acquisition(view, generator, self.augmentation)
        order = torch.randperm(3, generator=generator).tolist()
        return view.permute(order)[..., : self.slices]

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        views, own = self.ahead.batch(step, generator)
        x = views.to(self.device, memory_format=torch.channels_last_3d)
        mean, std = self.net.posterior(x)
        noise = noise_like(mean.float(), own)
        rec = self.net.decode(mean + std * noise).float()
        l1 = (rec - x).abs().mean()
        figures = {"l1": l1.item()}
        likeness = l1
        if self.lpips is not None:
            perceptual = self.lpips(slices_of(rec), slices_of(x)).mean()
            figures["perceptual"] = perceptual.item()
            likeness = l1 + self.weight.perceptual * perceptual
        kl = kl_divergence(mean.float(), std.float()) / x[0].numel()
        figures["kl"] = kl.item()
        total = likeness + self.weight.kl * kl
        self._pair = None
        if step >= self.weight.adversarial_from * self.fit.steps:
            assert self.critic is not None
            fooled = -self.critic(slices_of(rec))[-1].mean()
            factor = balance(likeness, fooled, self.net.last_layer)
            total = total + self.weight.adversarial * factor * fooled
            figures |= {"adversarial": fooled.item(), "balance": float(factor)}
            self._pair = (slices_of(x), slices_of(rec.detach()))
        return total, figures

    def critic_loss(self, step: int) -> Tensor | None:
        if self._pair is None or self.critic is None:
            return None
        real, fake = (self.critic(v)[-1] for v in self._pair)
        return hinge(real, fake)


def slices_of(x: Tensor) -> Tensor:
    """(B, 1, D, H, W) -> (B W, 1, D, H)."""
    return x.permute(0, 4, 1, 2, 3).flatten(0, 1)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's loss (Lim & Ye 2017): what is real above 1, what is not below -1."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def balance(likeness: Tensor, fooled: Tensor, last: Tensor) -> Tensor:
    """|d likeness / d last| over |d fooled / d last|, at most 1e4 (Esser et al. 2021, Eq. 7): both
    terms move the last layer as much. Of several processes that of the whole batch."""
    lengths = []
    for term in (likeness, fooled):
        (gradient,) = torch.autograd.grad(term, last, retain_graph=True)
        gradient = gradient.contiguous()
        average([gradient])
        lengths.append(gradient.norm())
    return (lengths[0] / (lengths[1] + 1e-4)).clamp(max=1e4).detach()


# Files of other projects' weights, in a folder that the user names.
VGG, CHANNELS = "vgg16.pth", "lpips_vgg.pth"


def read_lpips(folder: Path) -> Lpips:
    """LPIPS from vgg16.pth (torchvision's) and lpips_vgg.pth (the lpips package's vgg.pth). Raises
    ToolError where one is missing or of something else."""
    states = []
    for name in (VGG, CHANNELS):
        path = folder / name
        try:
            states.append(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:
            raise ToolError(
                path,
                f"cannot be read ({error.__class__.__name__})",
                "weights of torchvision's vgg16" if name == VGG else "weights of lpips 0.1, vgg",
                "put them there, or leave --lpips out",
            ) from error
    try:
        return lpips_from(*states)
    except (KeyError, RuntimeError, AttributeError, TypeError) as error:
        problem = f"does not fit ({str(error).splitlines()[-1].strip()})"
        raise ToolError(folder, problem, f"{VGG} and {CHANNELS}") from error
