"""What the shapes of a checkpoint's tensors do not tell."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Untold:
    """The defaults of MONAI's networks, and the schedule of its models of the brain.

    `head_channels` has one entry, or one a level. A latent times `scale_factor` is what the UNet
    sees.
    """

    norm_groups: int = 32
    norm_eps: float = 1e-6
    head_channels: tuple[int, ...] = (8,)
    prediction: str = "eps"
    schedule: str = "scaled_linear"
    timesteps: int = 1000
    beta_start: float = 0.0015
    beta_end: float = 0.0205
    scale_factor: float = 1.0


UNTOLD = Untold()
