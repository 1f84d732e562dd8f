"""Train the tissue network: grey matter, white matter and CSF of a study's own label maps.

What it is for is a comparison (cDDGM, section 3.1.2): trained on one scanner, tested on another,
with and without counterfactual scans of the training people. So nothing else helps it unless it is
asked for: images are mirrored, and 'plain' changes their contrast, bias field and noise.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cfgen.config import FitConfig, TissueAugmentation
from cfgen.data.tissues import TISSUES
from cfgen.device import channels_last
from cfgen.measure.tissues import TissueScan, tissue_dice, tissue_map
from cfgen.nets.segmenter import SegmenterConfig, TissueNet
from cfgen.train.augmentation import Augmentation, mirror, random_acquisition
from cfgen.train.draws import chance, each_its_own
from cfgen.train.fit import seed_weights
from cfgen.train.segmenter import draw_labels, set_loss
from cfgen.train.together import my_part

TISSUE_NET = SegmenterConfig(
    classes=len(TISSUES), channels=(16, 32, 64), pack=2, hidden=64, norm_groups=4
)
# As wide as segmentation tools draw them: gamma from 0.55 to 1.8, a field of 20 %, noise of 3 %.
PLAIN = Augmentation(
    log_gamma=0.3, log_brightness=0.0, log_bias=0.2, noise_probability=0.5, noise=0.03
)
MIRRORED = 0.5


class TissueTask:
    """`people` are the renditions of each person's scan, of which a step draws any alike: the scan
    itself and, where there are some, its counterfactuals. `held_out` is for figures."""

    critic: nn.Module | None = None

    def __init__(
        self,
        people: Sequence[Sequence[TissueScan]],
        held_out: Sequence[TissueScan],
        device: torch.device,
        fit: FitConfig,
        augmentation: TissueAugmentation = "none",
        net: SegmenterConfig = TISSUE_NET,
    ) -> None:
        seed_weights(fit.seed)
        self.people, self.held_out, self.device = people, held_out, device
        self.batch_size, self.augmentation = fit.batch_size, augmentation
        self.net = channels_last(TissueNet(net), device)
        self.member = torch.eye(net.classes, device=device)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The mean over examples, which differ in size and are looked at one by one."""
        own = each_its_own(generator, self.batch_size)[my_part(self.batch_size)]
        parts = torch.stack([torch.stack(self._example_loss(g)) for g in own]).mean(0)
        return parts.sum(), {"entropy": parts[0].item(), "dice": parts[1].item()}

    def _example_loss(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Cross-entropy, and 1 - mean soft Dice of the classes."""
        image, tissues = random_example(self.people, generator, self.augmentation)
        batch = image[None, None].to(self.device, memory_format=torch.channels_last_3d)
        scores = self.net(batch)[0].float().flatten(1)
        return set_loss(scores, tissues.flatten().to(self.device), self.member)

    def critic_loss(self, step: int) -> Tensor | None:
        return None

    @torch.no_grad()
    def report(self, net: nn.Module, picture: Path) -> dict[str, float]:
        """Mean Dice of the held-out scans by tissue, and a picture of the first."""
        net = copy.deepcopy(net).eval()
        assert isinstance(net, TissueNet)
        first = self.held_out[0].image
        draw_labels(picture, first.float(), tissue_map(net, first, self.device), len(TISSUES))
        found = tissue_dice(net, self.held_out, self.device)
        means = {name: float(np.nanmean(values)) for name, values in found.items()}
        return means | {"mean": float(np.mean(list(means.values())))}


def random_example(
    people: Sequence[Sequence[TissueScan]],
    generator: torch.Generator,
    augmentation: TissueAugmentation,
) -> tuple[Tensor, Tensor]:
    """An image (D, H, W) float32 and its classes, of a person and a rendition that are drawn."""
    renditions = people[int(torch.randint(len(people), (1,), generator=generator))]
    scan = renditions[int(torch.randint(len(renditions), (1,), generator=generator))]
    image, tissues = scan.image.float(), scan.tissues
    if chance(generator, MIRRORED):
        image, tissues = mirror(image), mirror(tissues)
    if augmentation == "plain":
        image = random_acquisition(image, generator, PLAIN)
    return image, tissues
