"""Train the judge of counterfactuals: a few small CNNs that differ by seed, on real scans alone.

The numbers are learned by squared error and the categories by cross-entropy, as in CDM section 4.3,
weighted by how rare a level is, as in cDDGM Eq. 2; a target that a scan lacks is left out of its
loss.

A hundred scans are few. In cross-validation within 120 scans of IXI (three of five folds, one
network, 400 steps) the error of age was 8.3 years, 7.4 with the places of voxels as input, and 7.8
of these without the volumes as targets; that of ridge on the same shrunk voxels was 8.4.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfgen.config import FitConfig
from cfgen.data.acquisition_columns import is_acquisition
from cfgen.data.conditions import Schema
from cfgen.device import channels_last, no_autocast
from cfgen.measure.judge import VOLUME
from cfgen.nets.judge import Judge, JudgeConfig
from cfgen.train.augmentation import Augmentation, mirror, random_acquisition, random_view
from cfgen.train.fit import seed_weights
from cfgen.train.judge_data import JudgeData

# No warps: they blur, and networks that saw blurred brains alone were years off on sharp ones.
JUDGE_AUGMENTATION = Augmentation(
    warp_probability=0.0,
    log_gamma=0.1,
    log_brightness=0.05,
    log_bias=0.0,
    noise_probability=0.0,
)
# What tells scanners apart is contrast: a network that is to see them sees it as it is.
ACQUISITION_AUGMENTATION = replace(JUDGE_AUGMENTATION, log_gamma=0.0, log_brightness=0.0)
# Shrunk images are shifted by up to so many whole voxels along each axis.
SHIFT_VOXELS = 1
# Scans that the batch norms see at a time when they settle.
SETTLED = 16
# All volumes together weigh as much as one target that was asked for by name.
VOLUMES_WEIGHT = 1.0


def judge_config(targets: Schema, shape: tuple[int, ...]) -> JudgeConfig:
    """The network for these targets and images of `shape` (D, H, W)."""
    d, h, w = shape
    levels = tuple(len(v.levels) for v in targets.variables if v.kind == "categorical")
    return JudgeConfig((d, h, w), len(targets.variables) - len(levels), levels)


class JudgeTask:
    """`train` and `val` as `read_judge_data` gives them; `val` is for the log alone."""

    critic = None

    def __init__(
        self,
        targets: Schema,
        train: JudgeData,
        val: JudgeData,
        device: torch.device,
        config: FitConfig,
        augmentation: Augmentation | None = None,
    ) -> None:
        seed_weights(config.seed)
        net = Judge(judge_config(targets, train.images.shape[1:]))
        self.targets, self.train, self.val = targets, train, val
        # Once, not at every step.
        self.small, self.small_val = _shrunk(net, train.images), _shrunk(net, val.images)
        net.centre.copy_(self.small.mean(0))
        self.net = channels_last(net, device)
        self.weight = target_weights(targets)
        self.level_weights = level_weights(train.targets, net.config)
        self.device, self.batch_size = device, config.batch_size
        self.augmentation = augmentation or usual_augmentation(targets)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        # Every scan alike: where the old are few, decades drawn equally often make all look older
        # (in cross-validation by 3.4 years instead of 1.6).
        picks = torch.randint(len(self.small), (self.batch_size,), generator=generator)
        views = torch.stack([self._view(self.small[i], generator) for i in picks.tolist()])[:, None]
        views = views.to(self.device).contiguous(memory_format=torch.channels_last_3d)
        # In bf16 the kernels of a CPU give gradients of NaN on maps of two voxels' edge; on small
        # maps they are no faster than those of float32.
        with no_autocast(self.device):
            outputs = self.net.outputs(views)
        truth = self.train.targets[picks].to(self.device)
        errors = target_errors(outputs, truth, self.net.config, self.level_weights)
        total = (self.weight.to(self.device) * errors).sum()
        named = [n for n, v in enumerate(self.targets.variables) if not v.name.startswith(VOLUME)]
        return total, {self.targets.names[n]: errors[n].item() for n in named}

    def _view(self, image: Tensor, generator: torch.Generator) -> Tensor:
        d, h, w = image.shape
        view = random_view(image, (d, h, w), generator, self.augmentation)
        shift = torch.randint(-SHIFT_VOXELS, SHIFT_VOXELS + 1, (3,), generator=generator)
        # Brains end before the edge of the grid: nothing comes in on the other side.
        view = view.roll(shift.tolist(), (0, 1, 2))
        return random_acquisition(view, generator, self.augmentation)

    def critic_loss(self, step: int) -> Tensor | None:
        return None

    @torch.no_grad()
    def report(self, net: nn.Module, picture: Path) -> dict[str, float]:
        """The errors on val, as in the loss; the mean of the volumes. Nothing is chosen by them."""
        assert isinstance(net, Judge)
        net = copy.deepcopy(net)
        settle(net, self.train.images, self.device)
        small = self.small_val[:, None].to(self.device)
        outputs = torch.cat([net.outputs(x).float().cpu() for x in small.split(self.batch_size)])
        errors = target_errors(outputs, self.val.targets, net.config, self.level_weights)
        by_name = dict(zip(self.targets.names, errors.tolist(), strict=True))
        volumes = [e for name, e in by_name.items() if name.startswith(VOLUME)]
        named = {name: e for name, e in by_name.items() if not name.startswith(VOLUME)}
        return named | ({"volumes": sum(volumes) / len(volumes)} if volumes else {})


@torch.no_grad()
def settle(net: Judge, images: Tensor, device: torch.device) -> None:
    """Take the means and spreads of the batch norms from scans as they are, (N, D, H, W), and from
    their mirror images.

    In training they follow the last few batches of changed views, and the weights are averages:
    without this step the error of age was 9.0 years where it is 8.3.
    """
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm3d)]
    for norm in norms:
        norm.reset_running_stats()
        # None is the mean of all batches; they must be of about one size.
        norm.momentum = None
    net.train()
    for batch in _shrunk(net, images).tensor_split(-(-len(images) // SETTLED)):
        net.outputs(torch.cat([batch, mirror(batch)])[:, None].to(device))
    net.eval()


def _shrunk(net: Judge, images: Tensor) -> Tensor:
    """(N, D, H, W) -> (N, *small) float32."""
    return torch.cat([net.shrink(x[None, None].float()) for x in images])[:, 0]


def target_weights(targets: Schema) -> Tensor:
    """(T,): 1 for a target that was named, the volumes share `VOLUMES_WEIGHT`."""
    volumes = sum(name.startswith(VOLUME) for name in targets.names)
    return torch.tensor(
        [VOLUMES_WEIGHT / volumes if n.startswith(VOLUME) else 1.0 for n in targets.names]
    )


def usual_augmentation(targets: Schema) -> Augmentation:
    acquired = any(map(is_acquisition, targets.names))
    return ACQUISITION_AUGMENTATION if acquired else JUDGE_AUGMENTATION


def level_weights(truth: Tensor, config: JudgeConfig) -> list[Tensor]:
    """(levels,) of each category in targets (N, T): one over how many scans have the level, in mean
    1 over the scans that have any; 0 of a level that none has."""
    weights = []
    for levels, column in zip(config.categories, truth[:, config.numbers :].unbind(1), strict=True):
        known = column[column.isfinite()].long()
        count = torch.bincount(known, minlength=levels).float()
        there = count > 0
        weights.append(torch.where(there, len(known) / (there.sum() * count.clamp(min=1)), 0.0))
    return weights


def target_errors(
    outputs: Tensor, truth: Tensor, config: JudgeConfig, weights: Sequence[Tensor]
) -> Tensor:
    """(T,) mean squared error or cross-entropy of outputs (B, outputs) against targets (B, T).

    `weights` are those of the levels of each category (`level_weights`). NaN in `truth` is unknown;
    a target that no row of the batch has costs nothing.
    """
    known = truth.isfinite()
    # Not by the sum of weights: a batch without a rare level would count its scans as more.
    count = known.sum(0).clamp(min=1)
    truth = truth.nan_to_num()
    squares = (outputs[:, : config.numbers] - truth[:, : config.numbers]).square()
    losses = [*squares.unbind(1)]
    scores = outputs[:, config.numbers :].split(config.categories, 1) if config.categories else ()
    categories = truth[:, config.numbers :].unbind(1)
    for levels, true, weight in zip(scores, categories, weights, strict=True):
        weighing = weight.to(levels.device)
        losses.append(F.cross_entropy(levels, true.long(), weighing, reduction="none"))
    return (torch.stack(losses, 1) * known).sum(0) / count
