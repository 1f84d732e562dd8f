"""Noise schedules: zt = sqrt(alpha_bar_t) z0 + sqrt(1 - alpha_bar_t) eps (Ho et al. 2020, Eq. 4).

Time runs from t = 0, the clean latent with alpha_bar[0] = 1, to t = T, the noisiest. MONAI and
diffusers count noise levels from 0; their index i is t = i + 1 here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cfgen.config import NOISE_SHIFT, Prediction
from cfgen.errors import UsageError

Kind = Literal["linear", "scaled_linear", "cosine"]


@dataclass(frozen=True)
class ScheduleConfig:
    """`beta_start` and `beta_end` belong to the two linear kinds.

    `shift` divides the signal-to-noise ratio of amplitudes at every time (Hoogeboom et al. 2023,
    section 3.1). What many voxels agree on, such as age, is seen through noise that hides each of
    them: in a latent of 42,000 numbers it is decided in the last hundredth of an unshifted
    schedule, where few steps of training or sampling fall.
    """

    kind: Kind
    prediction: Prediction
    T: int = 1000
    beta_start: float = 0.0015
    beta_end: float = 0.0205
    shift: float = NOISE_SHIFT


@dataclass(frozen=True)
class Schedule:
    """`alpha_bar` (T + 1,) float64, strictly falling from 1, and always on the CPU: not every
    accelerator has float64. `prediction` is what the net says."""

    alpha_bar: Tensor
    prediction: Prediction

    @staticmethod
    def make(config: ScheduleConfig) -> Schedule:
        """Raises UsageError for an unknown kind or prediction, or a shift that is not above 0."""
        if config.prediction not in ("eps", "v", "z0"):
            raise UsageError("schedule", f"prediction '{config.prediction}'", "eps, v or z0")
        if not config.shift > 0:
            raise UsageError("schedule", f"shift {config.shift:g}", "a number above 0")
        alpha_bar = _alpha_bar(config)
        if config.shift != 1:
            alpha_bar = alpha_bar / (alpha_bar + config.shift**2 * (1 - alpha_bar))
        return Schedule(alpha_bar, config.prediction)

    @property
    def T(self) -> int:
        return len(self.alpha_bar) - 1

    def levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise, sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), shaped to multiply `like`.

        Times t (B,) may be on any device; on the CPU they cost an accelerator no wait.
        """
        alpha_bar = self.alpha_bar[t.cpu()]
        shape = (-1, *[1] * (like.ndim - 1))
        signal, noise = alpha_bar.sqrt().reshape(shape), (1 - alpha_bar).sqrt().reshape(shape)
        # Rounded before it is moved.
        return signal.to(like.dtype).to(like.device), noise.to(like.dtype).to(like.device)

    def noise(self, t: int) -> float:
        """sqrt(1 - alpha_bar_t)."""
        return float((1 - self.alpha_bar[t]).sqrt())

    def add_noise(self, z0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        signal, noise = self.levels(t, z0)
        return signal * z0 + noise * eps

    def target(self, z0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network learns: eps, z0, or v = signal eps - noise z0 (Salimans & Ho 2022)."""
        if self.prediction == "eps":
            return eps
        if self.prediction == "z0":
            return z0
        signal, noise = self.levels(t, z0)
        return signal * eps - noise * z0

    def z0_and_eps(self, output: Tensor, zt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Both ends that a network's output at zt means."""
        signal, noise = self.levels(t, zt)
        if self.prediction == "eps":
            return (zt - noise * output) / signal, output
        if self.prediction == "z0":
            return output, (zt - signal * output) / noise
        return signal * zt - noise * output, noise * zt + signal * output


def _alpha_bar(config: ScheduleConfig) -> Tensor:
    T = config.T
    if config.kind == "cosine":
        # Nichol & Dhariwal 2021, Eq. 17, with their bound on beta.
        t = torch.arange(T + 1, dtype=torch.float64) / T
        f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    elif config.kind == "linear":
        beta = torch.linspace(config.beta_start, config.beta_end, T, dtype=torch.float64)
    elif config.kind == "scaled_linear":
        ends = math.sqrt(config.beta_start), math.sqrt(config.beta_end)
        beta = torch.linspace(*ends, T, dtype=torch.float64) ** 2
    else:
        raise UsageError("schedule", f"kind '{config.kind}'", "linear, scaled_linear or cosine")
    return torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - beta, 0)])


def time_grid(steps: int, last: int, first: int = 0) -> list[int]:
    """`steps` + 1 strictly rising times from `first` to `last`, evenly spaced and both included."""
    if not 1 <= steps <= last - first:
        raise UsageError(
            "--steps", f"{steps} steps between times {first} and {last}", f"1 to {last - first}"
        )
    return [first + round(i * (last - first) / steps) for i in range(steps + 1)]
