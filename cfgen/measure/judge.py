"""The judge of a bundle: what it guesses from images, and how far apart images are to it.

It saw real training scans and nothing that was generated, and no generator has seen it. Its own
error on real scans is in the part's configuration ('val'); a guess says nothing without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cfgen.bundle import Bundle, tuples
from cfgen.data.conditions import Schema
from cfgen.device import channels_last
from cfgen.nets.judge import Judge, JudgeConfig

BATCH = 8
# How the targets are named that are volumes of regions, as shares of the brain.
VOLUME = "volume_"
Images = np.ndarray | Tensor


@dataclass(frozen=True)
class Judges:
    """Networks that differ by seed alone, and what their outputs mean.

    Images are (N, D, H, W) on the model grid, as 'cfgen preprocess' writes them. Everything is
    computed in float32: in bf16 the same brain may be half a year older in another batch.
    """

    nets: tuple[Judge, ...]
    targets: Schema
    device: torch.device

    def judge(self, images: Images) -> dict[str, np.ndarray]:
        """The mean guess of the networks for every target.

        A number is (N,) in raw units; a category of two levels is (N,) the probability of the
        second (of sex: F), one of more levels (N, levels) the probability of each.
        """
        return {name: guess.mean(0) for name, guess in self.judge_each(images).items()}

    @torch.inference_mode()
    def judge_each(self, images: Images) -> dict[str, np.ndarray]:
        """As `judge`, of every network: (networks, N) or (networks, N, levels)."""
        found = [torch.stack([net(x) for net in self.nets]) for x in self._batches(images)]
        return decoded(torch.cat(found, 1).cpu(), self.targets)

    @torch.inference_mode()
    def embed(self, images: Images) -> np.ndarray:
        """(N, networks x channels) float32: what the heads see, for FID and KID."""
        found = [
            torch.cat([net.features(x)[1] for net in self.nets], 1) for x in self._batches(images)
        ]
        return torch.cat(found).cpu().numpy()

    @torch.inference_mode()
    def perceptual_distance(self, a: Images, b: Images) -> np.ndarray:
        """(N,) float32: how different each pair of images looks to the networks; 0 when equal."""
        pairs = zip(self._batches(a), self._batches(b), strict=True)
        found = [
            torch.stack([feature_distance(net, x, y) for net in self.nets]).mean(0)
            for x, y in pairs
        ]
        return torch.cat(found).cpu().numpy()

    def _batches(self, images: Images) -> list[Tensor]:
        """(B, 1, D, H, W) float32 on the device."""
        whole = torch.as_tensor(images)[:, None].float()
        return [some.to(self.device) for some in whole.split(BATCH)]


def feature_distance(net: Judge, a: Tensor, b: Tensor) -> Tensor:
    """(B,) of images (B, 1, D, H, W): the squared distance of their features, each scaled to length
    1 at its place, averaged over places and summed over levels.

    LPIPS (Zhang et al. 2018, eq. 1) without its learned weights.
    """
    total = torch.zeros(len(a), device=a.device)
    for x, y in zip(net.features(a)[0], net.features(b)[0], strict=True):
        apart = F.normalize(x, dim=1) - F.normalize(y, dim=1)
        total = total + apart.square().sum(1).mean((1, 2, 3))
    return total


def decoded(outputs: Tensor, targets: Schema) -> dict[str, np.ndarray]:
    """What outputs (..., outputs) say of the targets, as `Judges.judge` gives it."""
    found: dict[str, np.ndarray] = {}
    at = 0
    for v in targets.variables:
        if v.kind == "continuous":
            found[v.name] = (outputs[..., at] * v.scale + v.center).numpy()
            at += 1
            continue
        p = outputs[..., at : at + len(v.levels)].softmax(-1).numpy()
        found[v.name] = p[..., 1] if len(v.levels) == 2 else p
        at += len(v.levels)
    return found


def load_judge(bundle: Bundle, device: torch.device) -> Judges:
    """Raises BundleError when the bundle has no judge, or a damaged one."""
    config = bundle.part("judge").config
    tensors = bundle.tensors("judge")
    with bundle.fitting("judge"):
        network, targets = JudgeConfig(**tuples(config["net"])), Schema.from_json(config["targets"])
        return unpack(tensors, network, config["seeds"], targets, device)


def pack(nets: Sequence[Judge]) -> dict[str, Tensor]:
    """The networks as they are shipped: half precision, 'seed0.' and so on before the names.

    They saw the same scans, so that the mean image is there once.
    """
    shared = {"centre": nets[0].centre.half()}
    return shared | {
        f"seed{n}.{name}": value.half() if value.is_floating_point() else value
        for n, net in enumerate(nets)
        for name, value in net.state_dict().items()
        if name != "centre"
    }


def unpack(
    tensors: dict[str, Tensor],
    config: JudgeConfig,
    seeds: int,
    targets: Schema,
    device: torch.device,
) -> Judges:
    """The inverse of `pack`."""
    nets = []
    for n in range(seeds):
        own = f"seed{n}."
        weights = {k.removeprefix(own): v for k, v in tensors.items() if k.startswith(own)}
        net = Judge(config)
        net.load_state_dict(weights | {"centre": tensors["centre"]})
        nets.append(channels_last(net, device).eval())
    return Judges(tuple(nets), targets, device)
