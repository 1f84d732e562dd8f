"""How much each noise level counts in the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from cfgen.config import LossWeights
from cfgen.diffusion.schedule import Schedule

# Hang et al. 2023 found 5 best.
MIN_SNR_GAMMA = 5.0


def loss_weights(
    kind: LossWeights, schedule: Schedule, t: Tensor, gamma: float = MIN_SNR_GAMMA
) -> Tensor:
    """(B,) float32 factors of the squared error of the network's own output at times t (B,).

    'uniform' is 1. 'min-snr' counts an error of z0 min(SNR_t, gamma) times, with SNR_t =
    alpha_bar_t / (1 - alpha_bar_t) (Hang et al. 2023, Eq. 4 and 8): an error of eps is SNR_t times
    that of z0 when squared, an error of v SNR_t + 1 times.
    """
    if kind == "uniform":
        return torch.ones(len(t))
    alpha_bar = schedule.alpha_bar[t.cpu()]
    snr = alpha_bar / (1 - alpha_bar)
    of_output = {"eps": snr, "v": snr + 1, "z0": torch.ones_like(snr)}[schedule.prediction]
    return (snr.clamp(max=gamma) / of_output).float()
