"""Latent Drifting (Yeganeh et al. 2025): a constant moved into every mean of the reverse process.

    p(z_s | z_t) = N(m(z0, eps; s) + delta, Sigma)                                  (their Eq. 4)

for each step t -> s of a sampler, m the mean that the sampler would have without drift, of the z0
and the eps that the network sees at z_t. That is all of it for a network that knows nothing of it
(drift at inference). delta is a step's: where nothing brings a latent back, n steps move it by n
delta.

The paper adds delta to 'the target z_T of the forward process' too, and leaves open what comes
before T. Here

    z_t = signal_t z0 + noise_t eps + delta    for t >= 1,    z_0 = z0,

and the network is trained on that z_t for the targets of z0 and eps as ever. It is taken because
Eq. 4 is then exactly right: w_t = z_t - delta is the process without drift, whose reverse steps,
w_s = m(z0, eps; s), say that the mean of z_s is m + delta, the same constant at every step. The
other reading, a noise of mean delta, z_t = signal_t z0 + noise_t (eps + delta), has the same end
z_T, but its reverse mean is moved by noise_s delta, which is not Eq. 4. Samplers have it as the
form 'noise' ('noise:0.02'), which measures a little better (docs/adaptation.md). In training it
would be a change of coordinates, as the other is.

So a network that was trained with a drift d is one that is asked at w + d, and its sampler runs on
w, from noise without a mean to a z0 that is not moved. With a drift delta of its
own besides, the sampler moves w by what delta has more than d (`less`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from cfgen.errors import UsageError

# Latents, and so their drift, are of about unit variance.
LIMIT = 1.0
# Every mean of a step is moved by delta, or by its latent's share of noise times delta.
Form = Literal["constant", "noise"]
OF_NOISE = "noise:"


@dataclass(frozen=True)
class Drift:
    """`delta`, in units of the standardised latent: one for all channels, or one a channel."""

    delta: tuple[float, ...] = (0.0,)
    form: Form = "constant"

    def __bool__(self) -> bool:
        return any(self.delta)

    def at(self, noise: float) -> Drift:
        """What moves the mean of a latent that has so much noise, sqrt(1 - alpha_bar)."""
        if self.form == "constant" or not self:
            return self
        return Drift(tuple(noise * value for value in self.delta))

    def plus(self, z: Tensor) -> Tensor:
        """z (B, C, ...) + delta; z itself where there is no drift, to the bit."""
        return z + self._like(z) if self else z

    def minus(self, z: Tensor) -> Tensor:
        return z - self._like(z) if self else z

    def less(self, other: Drift) -> Drift:
        """This drift without the other one. Raises UsageError where they are of two forms."""
        if not other:
            return self
        if not self:
            return other.times(-1)
        if self.form != other.form:
            problem = f"{self.text()}, of a model that was trained with {other.text()}"
            raise UsageError("--drift", problem, "one of the same form")
        channels = max(len(self.delta), len(other.delta))
        pairs = zip(_spread(self, channels), _spread(other, channels), strict=True)
        return replace(self, delta=tuple(a - b for a, b in pairs))

    def times(self, factor: float) -> Drift:
        return replace(self, delta=tuple(factor * value for value in self.delta))

    def check(self, channels: int, where: object = "--drift") -> Drift:
        """Itself. Raises UsageError for a number outside +-1, and for another number of values than
        1 or `channels`."""
        _check_range(self, where)
        if len(self.delta) not in (1, channels):
            found = f"{len(self.delta)} values for a latent of {channels} channels"
            raise UsageError(where, found, f"one, or {channels} with commas between")
        return self

    def text(self) -> str:
        """As `parse_drift` reads it."""
        form = OF_NOISE if self.form == "noise" else ""
        return form + ",".join(f"{value:g}" for value in self.delta)

    def constant(self, why: str) -> Drift:
        """Itself. Raises UsageError, with a reason, for one of the other form."""
        if self.form == "noise":
            raise UsageError("--drift", f"'{self.text()}' {why}", f"{OF_NOISE[:-1]} left out")
        return self

    def _like(self, z: Tensor) -> Tensor:
        delta = torch.tensor(self.delta, dtype=z.dtype)
        return delta.reshape(1, -1, *[1] * (z.ndim - 2)).to(z.device)


NO_DRIFT = Drift()


@dataclass(frozen=True)
class Drifting:
    """The drifts of a diffusion model: that of its training, and the one that its samplers are to
    have, in steps of which there are `steps` from noise to image. In other steps they go as far in
    all."""

    trained: Drift = NO_DRIFT
    sampling: Drift = NO_DRIFT
    steps: int = 1

    def of_a_step(self, steps: int, depth: float = 1.0) -> Drift:
        """What a step moves a latent by, beyond the drift of training, of `steps` from a `depth` of
        the noise down."""
        return self.sampling.less(self.trained).times(self.steps * depth / steps)

    def to_json(self) -> dict[str, object]:
        return {
            "trained": list(self.trained.delta),
            "sampling": list(self.sampling.delta),
            "steps": self.steps,
        } | ({"form": "noise"} if self.sampling.form == "noise" else {})

    @staticmethod
    def from_json(entry: dict[str, Any] | None) -> Drifting:
        """Raises KeyError or TypeError when it is none."""
        if entry is None:
            return NO_DRIFTING
        sampling = Drift(tuple(entry["sampling"]), entry.get("form", "constant"))
        return Drifting(Drift(tuple(entry["trained"])), sampling, entry["steps"])


NO_DRIFTING = Drifting()


def parse_drift(text: str, where: object = "--drift") -> Drift:
    """'0.05', or '0.05,-0.02,...' with a value a channel; 'noise:0.05' of the other form. Raises
    UsageError."""
    form: Form = "noise" if text.startswith(OF_NOISE) else "constant"
    try:
        parts = text.removeprefix(OF_NOISE).split(",")
        drift = Drift(tuple(float(part) for part in parts), form)
    except ValueError as error:
        expected = "a number from -1 to 1, or one a channel with commas between"
        raise UsageError(where, f"'{text}'", expected) from error
    _check_range(drift, where)
    return drift


def _check_range(drift: Drift, where: object) -> None:
    for value in drift.delta:
        if not (math.isfinite(value) and abs(value) <= LIMIT):
            raise UsageError(where, f"{value:g}", "numbers from -1 to 1", "0.02, for example")


def _spread(drift: Drift, channels: int) -> tuple[float, ...]:
    return drift.delta * channels if len(drift.delta) == 1 else drift.delta
