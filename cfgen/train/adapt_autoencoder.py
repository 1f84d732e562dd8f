"""Fine-tune an autoencoder to few scans of another scanner: its decoder alone, or all of it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from cfgen.config import TuneAutoencoder
from cfgen.nets.causal_autoencoder import AnyAutoencoder
from cfgen.train.autoencoder import AutoencoderTask
from cfgen.train.fit import HELD_OUT

# What turns latents into images.
DECODING = ("decoder.", "post_quant_conv.", "linear_decoder.", "unfold.")
# A share of the training that it never reaches: few scans are no match for an adversary.
NO_ADVERSARY = 2.0


def choose_weights(net: AnyAutoencoder, tune: TuneAutoencoder) -> None:
    """Let the decoder's weights alone be trained, so that every latent stays what it is; or all."""
    if tune == "decoder":
        for name, weight in net.named_parameters():
            weight.requires_grad_(name.startswith(DECODING))


class AdaptAutoencoderTask:
    """Another task of an autoencoder, without its adversary. Reports say the PSNR of held-out scans
    too as a figure that is better the lower it is."""

    critic: nn.Module | None = None

    def __init__(self, task: AutoencoderTask) -> None:
        self.task = task

    @property
    def net(self) -> AnyAutoencoder:
        return self.task.net

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return self.task.loss(step, generator)

    def critic_loss(self, step: int) -> Tensor | None:
        return None

    def report(self, net: nn.Module, picture: Path) -> dict[str, float]:
        figures = self.task.report(net, picture)
        return figures | {HELD_OUT: -figures["psnr_db"]}
