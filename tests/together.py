"""Small trainings for tests of several processes: `python together.py TASK=FOLDER ... die=STEP`.

The last process kills itself at that step, as kill -9 does, where it comes to it.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from cfgen import device as devices
from cfgen import processes
from cfgen.causal.latent_mean import LatentMean
from cfgen.config import FitConfig
from cfgen.data.parcellation import NAMES, SETS
from cfgen.nets.autoencoder import Autoencoder, AutoencoderConfig
from cfgen.nets.causal_autoencoder import CausalConfig
from cfgen.nets.condition import token_width
from cfgen.nets.diffusion_decoder import DecoderConfig
from cfgen.nets.segmenter import SegmenterConfig
from cfgen.nets.unet import UNet, UNetConfig
from cfgen.train import latent_diffusion as ldm
from cfgen.train.autoencoder import AutoencoderLoss, AutoencoderTask
from cfgen.train.causal_autoencoder import Causal, CausalLoss, CausalTask
from cfgen.train.control import ControlConfig, ControlTask
from cfgen.train.cycle import CycleTask
from cfgen.train.diffusion_decoder import DecoderRecipe, DecoderTask
from cfgen.train.fit import Task, fit, seed_weights
from cfgen.train.latents import LatentData, fit_mean
from cfgen.train.painting import Synthesis
from cfgen.train.segmenter import LabelledScan, LabelMap, SegmenterTask

FIT = FitConfig(8, 1e-3, batch_size=4, warmup_steps=4, checkpoint_every=3, report_every=100)
CPU = torch.device("cpu")


def autoencoder() -> Task:
    """Its critic joins half way."""
    net = AutoencoderConfig((8, 8), (1, 1), (False, False), 4, norm_groups=4, pack=2)
    images = torch.rand(6, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    loss = AutoencoderLoss(adversarial_from=0.5, critic_channels=4)
    masks = torch.ones(1, 32, 32, 32, dtype=torch.bool)
    return AutoencoderTask(images, torch.ones(6), images[:1], masks, CPU, FIT, net, loss)


def causal() -> Task:
    """Its critic joins half way, in balance with the rest."""
    images = torch.rand(6, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    how = Causal(
        CausalConfig((8, 8, 8), 1, 4, slices=24, norm_groups=4),
        edge=24,
        loss=CausalLoss(adversarial_from=0.5, critic_channels=4),
    )
    masks = torch.ones(1, 24, 24, 24, dtype=torch.bool)
    return CausalTask(images, torch.ones(6), images[:1], masks, CPU, FIT, how)


def decoder() -> Task:
    """A diffusion decoder of an autoencoder that knows nothing."""
    seed_weights(FIT.seed)
    net = AutoencoderConfig((8, 8), (1, 1), (False, False), 4, norm_groups=4, pack=2)
    images = torch.rand(6, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    masks = torch.ones(1, 32, 32, 32, dtype=torch.bool)
    recipe = DecoderRecipe(DecoderConfig((8, 8), 0), (16, 16, 16))
    cohort = (images, torch.ones(6), images[:1], masks)
    return DecoderTask(*cohort, Autoencoder(net), CPU, FIT, recipe)


def latent_diffusion() -> ldm.LatentDiffusionTask:
    data = latents()
    return ldm.LatentDiffusionTask(data, latent_mean(data), CPU, FIT, PLAIN, net=unet())


def cycle() -> Task:
    data = latents()
    return CycleTask(unet(), data, latent_mean(data), CPU, FIT, PLAIN)


PLAIN = ldm.LatentDiffusionConfig(latent_mean=False)


def latents() -> LatentData:
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(5, 2, 4, 4, 4, 4, generator=generator).half()
    conditions = torch.randn(5, 2, generator=generator)
    return LatentData(bank, conditions, torch.ones(5), bank[:2, 0], conditions[:2])


def latent_mean(data: LatentData) -> LatentMean:
    splined = torch.tensor([True, False])
    return fit_mean(data.latents, data.conditions, data.weights, splined, False)


def unet() -> UNet:
    seed_weights(FIT.seed)
    return UNet(UNetConfig(4, 4, (8, 16), 1, (False, True), 8, token_width(2), norm_groups=4))


def control() -> Task:
    """A control network, with the contrast of regions."""
    data = latents()
    masks = torch.rand(5, 2, 3, 1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    data = replace(data, masks=masks, held_out_masks=masks[:2, 0])
    how = ControlConfig(regions=("csf", "cerebral_wm", "thalamus"), contrastive=0.1)
    return ControlTask(unet(), data, latent_mean(data), CPU, FIT, PLAIN, how)


def segmenter() -> Task:
    generator = torch.Generator().manual_seed(0)
    sets = torch.randint(len(SETS), (24, 24, 24), generator=generator)
    sides, sets = (sets % 3).byte(), sets.byte()
    scans = [LabelledScan(torch.rand(24, 24, 24, generator=generator), sets, sides, 2.0)]
    maps = [LabelMap(sets, len(SETS), sets, sides, 2.0)]
    how = Synthesis(crop=(16, 16, 16))
    net = SegmenterConfig(len(NAMES), (8, 8), norm_groups=4)
    return SegmenterTask(maps, scans, scans, CPU, FIT, net, synthesis=how, gentle=how)


TASKS = {
    f.__name__: f
    for f in (autoencoder, causal, decoder, latent_diffusion, cycle, control, segmenter)
}


def train(name: str, folder: Path, die_at: int | None = None) -> None:
    # In bf16 another batch is another rounding, which is larger than what is looked for.
    devices.fast_bf16 = lambda device: False  # type: ignore[assignment]
    task = TASKS[name]()
    loss = task.loss

    def dying(step: int, generator: torch.Generator):
        if step == die_at and processes.number() == processes.count() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(step, generator)

    task.loss = dying  # type: ignore[method-assign]
    task.report = lambda net, picture: {}  # type: ignore[method-assign]
    fit(task, FIT, folder)


def print_threads() -> None:
    """The names of this process' threads, as Linux has them."""
    names = (f.read_text().strip() for f in Path("/proc/self/task").glob("*/comm"))
    print("threads at the end:", *names)


if __name__ == "__main__":
    torch.set_num_threads(1)
    # The last of its kind to be called.
    atexit.register(print_threads)
    *asked, (_, last) = [argument.split("=") for argument in sys.argv[1:]]
    for name, place in asked:
        train(name, Path(place), int(last))
