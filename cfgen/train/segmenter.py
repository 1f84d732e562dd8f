"""Train the segmenter on painted label maps and on real scans with label maps of their own.

The two know different things: the painted heads have scalp and skull but no lobes, the real ones
have lobes but nothing around the brain. A label is the set of classes that it may stand for, and
the loss asks for the set alone (Fidon et al. 2021, label-set loss).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfgen.config import FitConfig
from cfgen.data.parcellation import BRAIN_FROM, LEFT, NAMES, SETS, membership
from cfgen.data.volume import Volume
from cfgen.device import autocast, channels_last, no_autocast
from cfgen.measure.segmenter import SPACING_MM, posteriors, scaled
from cfgen.nets.autoencoder import pack_voxels
from cfgen.nets.segmenter import Segmenter, SegmenterConfig
from cfgen.space.sampling import sample
from cfgen.train.draws import each_its_own
from cfgen.train.fit import seed_weights
from cfgen.train.painting import (
    GENTLE,
    SYNTHESIS,
    Example,
    Synthesis,
    acquire,
    nearest,
    paint,
    random_points,
    strip,
    swap_sides,
)
from cfgen.train.together import my_part

SEGMENTER = SegmenterConfig(classes=len(NAMES))


@dataclass(frozen=True)
class LabelMap:
    """A whole-head map in RAS order: `tissues` (I, J, K) uint8 numbers of what has one brightness,
    `count` of them; `sets` and `sides` as in `data/parcellation.py`; `spacing_mm`, isotropic."""

    tissues: Tensor
    count: int
    sets: Tensor
    sides: Tensor
    spacing_mm: float


@dataclass(frozen=True)
class LabelledScan:
    """A real scan in RAS order: `image` (I, J, K) with `sets` and `sides`; `spacing_mm`."""

    image: Tensor
    sets: Tensor
    sides: Tensor
    spacing_mm: float


@dataclass(frozen=True)
class SegmenterLoss:
    # How often an example is a painted map and not a real scan, from `painted_from` of the steps
    # on; before, it grows from 0: what a brain is is learned faster from one contrast.
    painted: float = 0.35
    painted_from: float = 0.3
    side: float = 0.2
    # The cross-entropy weighs a set by its voxels to the power of minus this at the start, and not
    # at all from half-time on: a structure of a few voxels would not be found for long otherwise.
    balance: float = 0.5
    # Of an example's voxels, a random share that differs from step to step: the last layer and the
    # loss at all of them would cost as much as the network.
    looked_at: float = 0.25


# For a network that knows brains already.
GOING_ON = SegmenterLoss(painted_from=0.0, balance=0.0)


class SegmenterTask:
    """`maps` and `scans` to train on, `held_out` scans for figures."""

    critic: nn.Module | None = None

    def __init__(
        self,
        maps: list[LabelMap],
        scans: list[LabelledScan],
        held_out: list[LabelledScan],
        device: torch.device,
        fit: FitConfig,
        net: SegmenterConfig = SEGMENTER,
        loss: SegmenterLoss = SegmenterLoss(),
        synthesis: Synthesis = SYNTHESIS,
        gentle: Synthesis = GENTLE,
    ) -> None:
        seed_weights(fit.seed)
        self.maps, self.scans, self.held_out = maps, scans, held_out
        self.device, self.weight = device, loss
        self.synthesis, self.gentle = synthesis, gentle
        self.steps, self.batch_size = fit.steps, fit.batch_size
        self.net = channels_last(Segmenter(net), device)
        self.membership = torch.from_numpy(membership()).to(device)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The mean over examples that are looked at one by one."""
        own = each_its_own(generator, self.batch_size)[my_part(self.batch_size)]
        losses, each = zip(*(self._example_loss(step, g) for g in own), strict=True)
        means = {name: sum(figures[name] for figures in each) / len(each) for name in each[0]}
        return torch.stack(losses).mean(), means

    def _example_loss(
        self, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        ramp = max(1.0, self.weight.painted_from * self.steps)
        share = self.weight.painted * min(1.0, (step + 1) / ramp)
        painted = bool(torch.rand(1, generator=generator) < share)
        painted = bool(self.maps) and (painted or not self.scans)
        pool: list[LabelMap] | list[LabelledScan] = self.maps if painted else self.scans
        chosen = pool[int(torch.randint(len(pool), (1,), generator=generator))]
        # In bf16 a voxel would be looked for a quarter of a voxel beside where it is.
        with no_autocast(self.device):
            example = random_example(chosen, generator, self.synthesis if painted else self.gentle)
        image = example.image[None, None].to(self.device)
        features = self.net.features(image.contiguous(memory_format=torch.channels_last_3d))
        cells = features[0, 0].numel()
        places = torch.randperm(cells, generator=generator)[: round(self.weight.looked_at * cells)]
        scores, side = self.net.scores_at(features[0], places.to(self.device))
        target = _cells(example.sets, self.net.config.pack)[places].flatten().to(self.device)
        sides = _cells(example.sides, self.net.config.pack)[places].flatten().to(self.device)
        balance = self.weight.balance * max(0.0, 1 - 2 * step / self.steps)
        entropy, dice = set_loss(scores.float(), target, self.membership, balance)
        known = sides > 0
        lateral = F.binary_cross_entropy_with_logits(
            side.float()[known], (sides[known] == LEFT).float()
        )
        total = entropy + dice + self.weight.side * lateral
        figures = {"entropy": entropy.item(), "dice": dice.item(), "side": lateral.item()}
        return total, figures

    def critic_loss(self, step: int) -> Tensor | None:
        return None

    @torch.no_grad()
    def report(self, net: nn.Module, picture: Path) -> dict[str, float]:
        """Mean Dice of the held-out scans over the structures, and of the brain."""
        dices: dict[str, list[float]] = {name: [] for name in NAMES}
        brains = []
        for scan in self.held_out:
            image = scaled(scan.image.float())[None, None].to(self.device)
            with autocast(self.device):
                scores, _ = net(image)
            labels, truth = scores[0].argmax(0).cpu(), scan.sets
            brains.append(_dice(labels > 1, truth != SETS.index((0, 1))))
            for index, name in enumerate(NAMES[2:], 2):
                if (truth == index).any():
                    dices[name].append(_dice(labels == index, truth == index))
        draw_labels(picture, image[0, 0].cpu(), labels, len(NAMES))
        means = {name: float(np.mean(v)) for name, v in dices.items() if v}
        return {
            "brain": float(np.mean(brains)),
            "mean": float(np.mean(list(means.values()))),
        } | means


def random_example(
    source: LabelMap | LabelledScan, generator: torch.Generator, options: Synthesis
) -> Example:
    """A crop around the middle of a label map, painted, or of a real scan, deformed."""
    centre = (torch.tensor(source.sets.shape, dtype=torch.float32) - 1) / 2
    points, mirrored = random_points(centre, SPACING_MM / source.spacing_mm, generator, options)
    sets, sides = nearest(source.sets, points), nearest(source.sides, points)
    if isinstance(source, LabelMap):
        image = paint(nearest(source.tissues, points), source.count, generator, options)
    else:
        image = sample(source.image.float()[None], points, "zeros")[0]
    if mirrored:
        sides = swap_sides(sides)
    if torch.rand(1, generator=generator) < options.strip_probability:
        image, sets = strip(image, sets, generator)
    return Example(acquire(image, generator, options), sets, sides)


def _cells(labels: Tensor, pack: int) -> Tensor:
    """(D, H, W) -> (cells, pack^3), in the order of the network's packed voxels."""
    return pack_voxels(labels[None, None], pack)[0].flatten(1).T


def set_loss(
    scores: Tensor, target: Tensor, member: Tensor, balance: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and 1 - mean soft Dice of scores (C, N) against sets (N,).

    `member` (sets, C) as of `parcellation.membership`. The probability of a set is the sum of those
    of its classes; Dice is the mean over the sets that the target has. The cross-entropy is a
    weighted mean, a set of n voxels by n^-balance.
    """
    probability = scores.softmax(0)
    # The first sets are the classes themselves.
    unions = member[len(scores) :] @ probability
    probability = torch.cat([probability, unions])
    flat = target.long()
    true = probability.gather(0, flat[None])[0]
    count = torch.bincount(flat, minlength=len(member)).float()
    overlap = torch.zeros_like(count).index_add(0, flat, true)
    present = count > 0
    weight = count.clamp(min=1).pow(-balance)[flat]
    entropy = -(weight * torch.log(true.clamp(min=1e-6))).sum() / weight.sum()
    dice = (2 * overlap + 1) / (probability.sum(1) + count + 1)
    return entropy, 1 - dice[present].mean()


@torch.inference_mode()
def meet_volumes(
    net: Segmenter, scans: Sequence[LabelledScan], device: torch.device, rounds: int = 8
) -> None:
    """Shift the scores of `net`, one number a class, until labelled volumes are met on average.

    The Dice loss makes small structures too large where it is unsure. Classes that no scan labels
    for certain, and what is not brain, stay as they are. Scans are looked at as `segment` does.
    """
    truth = np.zeros(len(NAMES))
    scores = []
    for scan in scans:
        affine = np.diag([scan.spacing_mm] * 3 + [1.0])
        seen = posteriors(net, Volume(scan.image.float().numpy(), affine), device)
        scores.append(seen.classes.clamp(min=1e-6).log().half())
        truth += np.bincount(scan.sets.flatten().numpy(), minlength=len(SETS))[: len(NAMES)]
    known = [c for c in range(BRAIN_FROM, len(NAMES)) if truth[c]]
    shift = torch.zeros(len(NAMES))
    for _ in range(rounds):
        counts = np.zeros(len(NAMES))
        for one in scores:
            labels = (one + shift[:, None, None, None].half()).argmax(0)
            counts += np.bincount(labels.flatten().numpy(), minlength=len(NAMES))
        for c in known:
            # Less than the whole step: neighbours move too.
            shift[c] -= 0.8 * float(np.log(max(counts[c], 0.2 * truth[c]) / truth[c]))
    assert net.conv_out.bias is not None
    cells = net.config.pack**3
    net.conv_out.bias[: len(NAMES) * cells] += shift.repeat_interleave(cells).to(device)


def _dice(a: Tensor, b: Tensor) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()).clamp(min=1))


def draw_labels(path: Path, image: Tensor, labels: Tensor, classes: int) -> None:
    """Middle slices of an image and of its labels, which are below `classes`."""
    from matplotlib import colormaps
    from matplotlib.image import imsave

    colours = torch.from_numpy(colormaps["nipy_spectral"](np.linspace(0, 1, classes))[:, :3])
    rows = []
    for axis in range(3):
        middle = image.shape[axis] // 2
        grey = image.select(axis, middle).T.flip(0)[..., None].expand(-1, -1, 3)
        painted = colours[labels.select(axis, middle).T.flip(0).long()]
        rows.append(torch.cat([grey, painted.float()], 1))
    width = max(r.shape[1] for r in rows)
    rows = [F.pad(r, (0, 0, 0, width - r.shape[1])) for r in rows]
    imsave(path, torch.cat(rows).clamp(0, 1).numpy())
