"""diffusers' schedulers with a drift: Eq. 4 of Latent Drifting inside diffusers' own pipelines.

A pipeline's latent is z = w + d here, d the drift that the network was trained with and w the
process without it (diffusion/drift.py): z is what the network is asked at, so that a pipeline that
puts its own hands on the latent (Pix2Pix-Zero) does so rightly. A step takes w, has diffusers'
scheduler make the next one, moves it by what the sampler's drift has more than d, and goes back to
z; the clean latent is z = w. Without drift nothing is added, and every number is diffusers' own.
"""

from __future__ import annotations

from typing import Any

from diffusers import DDIMInverseScheduler, DDIMScheduler, DDPMScheduler
from torch import Tensor

from cfgen.config import SdSampler
from cfgen.diffusion.drift import NO_DRIFT, Drift


class DriftingDDIMScheduler(DDIMScheduler):  # type: ignore[misc]
    """`trained` is the drift of the network, `drift` that of the sampler; both are set after the
    scheduler was made from a configuration, which knows nothing of them."""

    trained: Drift = NO_DRIFT
    drift: Drift = NO_DRIFT

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        w = self.trained.minus(sample)
        out = super().step(model_output, timestep, w, *args, **kwargs)
        stride = self.config.num_train_timesteps // self.num_inference_steps
        return _moved(self, out, last=int(timestep) < stride)


class DriftingDDPMScheduler(DDPMScheduler):  # type: ignore[misc]
    """Ancestral sampling, as `DriftingDDIMScheduler`."""

    trained: Drift = NO_DRIFT
    drift: Drift = NO_DRIFT

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        w = self.trained.minus(sample)
        out = super().step(model_output, timestep, w, *args, **kwargs)
        return _moved(self, out, last=int(self.previous_timestep(timestep)) < 0)


class DriftingDDIMInverseScheduler(DDIMInverseScheduler):  # type: ignore[misc]
    """Undoes the steps of a `DriftingDDIMScheduler` that was told the same of the network's
    output."""

    trained: Drift = NO_DRIFT
    drift: Drift = NO_DRIFT

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """What the network is asked at: the clean latent is not yet where it was trained."""
        return self.trained.plus(sample) if self._first(timestep) else sample

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        w = sample if self._first(timestep) else self.trained.minus(sample)
        before = self.drift.less(self.trained).minus(w)
        out = super().step(model_output, timestep, before, *args, **kwargs)
        return _with_sample(out, self.trained.plus)

    def _first(self, timestep: Any) -> bool:
        return int(timestep) < self.config.num_train_timesteps // self.num_inference_steps


Kind = DriftingDDIMScheduler | DriftingDDPMScheduler | DriftingDDIMInverseScheduler


def drifting(kind: type[Kind], config: dict[str, Any], trained: Drift, drift: Drift) -> Any:
    """A scheduler with the noise levels of a model's own, whatever its kind."""
    scheduler = kind.from_config(config)
    scheduler.trained, scheduler.drift = trained, drift
    return scheduler


SAMPLERS: dict[SdSampler, type[Kind]] = {
    "ddim": DriftingDDIMScheduler,
    "ddpm": DriftingDDPMScheduler,
}


def _moved(scheduler: Kind, out: Any, last: bool) -> Any:
    less = scheduler.drift.less(scheduler.trained)
    trained = NO_DRIFT if last else scheduler.trained
    return _with_sample(out, lambda w: trained.plus(less.plus(w)))


def _with_sample(out: Any, change: Any) -> Any:
    """A scheduler's output, an object or a tuple, with another previous sample."""
    if isinstance(out, tuple):
        return (change(out[0]), *out[1:])
    out.prev_sample = change(out.prev_sample)
    return out
