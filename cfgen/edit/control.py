"""The network of a bundle that takes masks of regions, beside its diffusion model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cfgen.bundle import Bundle
from cfgen.config import Control as Kind
from cfgen.errors import BundleError
from cfgen.nets.controlnet import (
    ControlNet,
    ControlNetConfig,
    MaskedNet,
    concatenated,
    controlled,
    pool_masks,
    told,
)
from cfgen.nets.unet import UNet, UNetConfig

# What the network was trained beside, and is of no use without.
BESIDE = ("autoencoder", "latent_mean", "unet")


@dataclass(frozen=True)
class Control:
    """`net`, of this `kind`, asks the diffusion model under masks of `regions`, told in this
    `detail`; `shape` (d, h, w) is the latent's."""

    kind: Kind
    net: MaskedNet
    regions: tuple[str, ...]
    detail: int
    shape: tuple[int, ...]

    def masks(self, maps: Tensor) -> Tensor:
        """What the network is told of maps (K, D, H, W) of its regions on the model grid."""
        return told(pool_masks(maps[None], self.shape, self.detail))


def load_control(bundle: Bundle, unet: UNet, shape: Sequence[int], device: torch.device) -> Control:
    """Raises BundleError when the part is missing, damaged or of other networks than the bundle's.

    `unet` is the bundle's, `shape` (d, h, w) that of its latents.
    """
    config = bundle.part("controlnet").config
    for part, sha256 in config["beside"].items():
        if bundle.part(part).sha256 != sha256:
            raise BundleError(
                bundle.path / "controlnet.safetensors",
                f"was trained beside another {part}",
                "that of the bundle",
                "train it again: cfgen train-ldm --control masks",
            )
    if config["kind"] == "concatenate":
        net = concatenated(bundle.network("controlnet", UNet, UNetConfig, device))
    else:
        net = controlled(unet, bundle.network("controlnet", ControlNet, ControlNetConfig, device))
    # Bundles that do not say it were told whole voxels.
    how = config["kind"], net, tuple(config["regions"]), int(config.get("detail", 1))
    return Control(*how, tuple(shape))
