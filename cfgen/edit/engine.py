"""A bundle ready to edit scans: abduction shared by all targets, and images on the scan's grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cfgen.bundle import Bundle, read_bundle
from cfgen.config import EDIT, SEED, SKULL_STRIP, Edit, Render, SkullStrip
from cfgen.data.conditions import Values
from cfgen.device import pick_device
from cfgen.edit.latent import LatentEdit, Models, condition_of, edit_latent, load_models
from cfgen.edit.samples import Measure, sample_noise
from cfgen.measure.ruler import Regions, Ruler
from cfgen.measure.segmenter import segment
from cfgen.progress import working
from cfgen.scan.brain import BrainFinder, brain_finder
from cfgen.scan.open import Opened
from cfgen.scan.render import render


@dataclass(frozen=True)
class Engine:
    """A bundle with its networks on a device; one serves any number of scans."""

    bundle: Bundle
    models: Models
    finder: BrainFinder
    device: torch.device

    @property
    def ruler(self) -> Ruler:
        """What measures regions, where the bundle can."""
        net = self.finder.segmenter
        missing = "" if net else "the bundle has no segmenter"
        return Ruler(net, self.device, self.bundle.name, missing)


@dataclass(frozen=True)
class Drawing:
    """How latents are edited: the sampler, and how many samples of the abduction with which seed.

    `subject` names the scan, so that people of a cohort do not share their noise.
    """

    edit: Edit = EDIT
    samples: int = 1
    seed: int = SEED
    subject: str = ""


@dataclass(frozen=True)
class Edited:
    """The latent edits of every sample, the deterministic one first, and their reconstructions
    (D, H, W) on the model grid."""

    latents: list[LatentEdit]
    rebuilt: list[np.ndarray]

    @property
    def round_trip(self) -> float:
        return self.latents[0].round_trip


def load_engine(
    bundle: Path, device: str = "auto", skull_strip: SkullStrip = SKULL_STRIP
) -> Engine:
    """Raises BundleError when the bundle is damaged or lacks a part."""
    with working("loading the model"):
        torch_device = pick_device(device)
        model = read_bundle(bundle)
        finder = brain_finder(model, skull_strip, torch_device)
        return Engine(model, load_models(model, torch_device), finder, torch_device)


def edit_scan(
    engine: Engine, opened: Opened, factual: Values, targets: Sequence[Values], drawing: Drawing
) -> Edited:
    """Abduct under the factual conditions; act and predict for every target."""
    schema, models = engine.bundle.schema, engine.models

    z0 = models.encode(torch.from_numpy(opened.prepared.image)[None, None])
    c, *others = (condition_of(schema, values, engine.device) for values in (factual, *targets))
    latents = []
    for sample in range(drawing.samples):
        noise = sample_noise(z0.shape, drawing.seed, drawing.subject, sample, z0.device)
        latents.append(edit_latent(models, z0, c, others, drawing.edit, noise))
    return Edited(latents, [decoded(engine, e.reconstruction) for e in latents])


def decoded(engine: Engine, z0: torch.Tensor) -> np.ndarray:
    """A latent (1, C, d, h, w) as an image (D, H, W) on the model grid."""
    return np.asarray(engine.models.decode(z0)[0, 0].cpu().numpy())


def images(
    engine: Engine, opened: Opened, edited: Edited, number: int, mode: Render
) -> Iterator[np.ndarray]:
    """The counterfactual scan (I, J, K) of every sample, for target `number`."""
    for latent, factual in zip(edited.latents, edited.rebuilt, strict=True):
        counterfactual = decoded(engine, latent.counterfactuals[number])
        yield render(opened.volume, opened.prepared, factual, counterfactual, mode)


def regions(engine: Engine, opened: Opened) -> Regions:
    """The scan's own volumes; what the segmenter found when it looked for the brain serves here."""
    known = opened.brain.regions
    return engine.ruler.measure(opened.volume) if known is None else engine.ruler.read(known)


def measure(engine: Engine, opened: Opened) -> Measure | None:
    """Volumes of an image on the scan's grid, where the bundle can measure them."""
    net = engine.finder.segmenter
    if net is None:
        return None
    return lambda image: segment(net, opened.volume.like(image), engine.device).volumes
