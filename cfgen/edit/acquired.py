"""A scan under another acquisition by a diffusion model, on its own grid.

The model's change on the model grid is brought to the scan's. Under the lock only what a map of
brightness explains of it reaches the scan (`lock.py`), and reaches the whole head: such a map is
for what the model never sees, too. Without it the change itself is added, within the brain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from cfgen.bundle import Bundle
from cfgen.config import Rediffusion
from cfgen.data.acquisition import BRIGHTNESS, CONTRAST, NAMES, Protocol
from cfgen.data.schema import Schema, Value
from cfgen.data.volume import Volume
from cfgen.diffusion.schedule import ScheduleConfig
from cfgen.edit.latent import Models, has_null, load_models, require_null
from cfgen.edit.lock import IntensityMap, intensity_map
from cfgen.edit.protocols import Target, told
from cfgen.edit.rediffuse import check_start, rediffused
from cfgen.errors import BundleError
from cfgen.measure.background import empty_voxels, levelled
from cfgen.measure.levels import Levels
from cfgen.nets.condition import Condition
from cfgen.scan.prepare import Prepared


@dataclass(frozen=True)
class Diffusion:
    """A bundle whose diffusion model knows acquisitions, and how it is asked."""

    bundle: Bundle
    device: torch.device
    config: Rediffusion
    lock: bool = True

    def __post_init__(self) -> None:
        """Raises BundleError for a bundle of other conditions, UsageError for what its model cannot
        be asked."""
        names = self.bundle.schema.names
        if not set(names) & set(NAMES):
            raise BundleError(
                self.bundle.path,
                f"its conditions are {', '.join(names)}",
                "parameters of an acquisition",
                "train it: cfgen train-ldm --conditions acquisition",
            )
        require_null(self.config.guidance, has_null(self.bundle))
        with self.bundle.fitting("unet"):
            schedule = ScheduleConfig(**self.bundle.part("unet").config["schedule"])
        check_start(self.config, schedule.T)

    @cached_property
    def models(self) -> Models:
        return load_models(self.bundle, self.device)


@dataclass(frozen=True)
class Acquired:
    """The scan (I, J, K) float32 under the target, the map of brightness that explains the change,
    the bias field that is not part of it, and the gain beside it."""

    image: np.ndarray
    contrast: IntensityMap
    bias: np.ndarray
    gain: float

    def undone(self, image: np.ndarray) -> np.ndarray:
        """An image under the target with the contrast and gain of the source: what is left of the
        change is what no map of brightness explains."""
        return self.contrast.inverse(image / (self.gain * self.bias)) * self.bias


def acquire(
    diffusion: Diffusion,
    scan: tuple[Volume, Prepared, Levels],
    target: Target,
    generator: torch.Generator,
) -> Acquired:
    """A scan that was prepared and whose `levels` are known, under the target.

    Scales are told of both acquisitions where the target changes them, else of neither: nobody
    knows what the other scanner's would be.
    """
    volume, prepared, levels = scan
    change = _change(diffusion, prepared, target, generator)
    level, bias = levelled(volume.data), levels.bias_on(volume.grid)
    flat = level / bias
    contrast = intensity_map(flat, change / bias, prepared.native_mask, levels)
    out = contrast(flat) * bias if diffusion.lock else level + change
    gain = float(target.scales.get(BRIGHTNESS, prepared.scale)) / prepared.scale
    empty = empty_voxels(volume.data)
    nothing = volume.data == 0 if empty is None else empty
    image = np.where(nothing, volume.data, out * np.float32(gain)).astype(np.float32)
    return Acquired(image, contrast, bias, gain)


def _change(
    diffusion: Diffusion, prepared: Prepared, target: Target, generator: torch.Generator
) -> np.ndarray:
    """(I, J, K), in the scan's units."""
    assert target.told is not None
    schema, image = diffusion.bundle.schema, torch.from_numpy(prepared.image)
    own, other = (dict(t) for t in target.told)
    known = scales_of(prepared)
    own = told(schema, {**own, **{n: known[n] for n in target.scales}})
    if other == own:
        return np.zeros(prepared.native.shape, np.float32)
    pair = (condition(schema, own), condition(schema, other))
    out = rediffused(diffusion.models, image[None, None], pair, diffusion.config, [generator])
    return prepared.change_to_native((out[0, 0] - image).numpy())


def scales_of(prepared: Prepared) -> dict[str, Value]:
    """SCALES of a scan."""
    return {
        BRIGHTNESS: prepared.scale,
        CONTRAST: contrast_of(torch.from_numpy(prepared.image)),
    }


def contrast_of(image: Tensor) -> float:
    """The spread of a prepared brain (D, H, W) over its mean."""
    inside = image[image > 0].float()
    return float(inside.std() / inside.mean())


def condition(schema: Schema, protocol: Mapping[str, Value]) -> Condition:
    return Condition(encoded(schema, [protocol]))


def encoded(schema: Schema, protocols: Sequence[Protocol]) -> Tensor:
    """(N, V) of what the schema knows of `protocols`; a text that it never saw is not known."""
    return torch.from_numpy(np.stack([schema.encode_known(told(schema, p))[0] for p in protocols]))
