"""A bundle ready to edit scans; its networks are loaded when an edit needs them, once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from cfgen.bundle import Bundle, read_bundle
from cfgen.causal.scm import Scm, load_scm
from cfgen.causal.worlds import settable
from cfgen.config import SKULL_STRIP, SkullStrip
from cfgen.data.conditions import Schema
from cfgen.data.schema import VOLUME_UNIT
from cfgen.device import pick_device
from cfgen.edit.control import load_control
from cfgen.edit.decoder import load_decoder
from cfgen.edit.latent import Models, load_models
from cfgen.edit.samples import Measure
from cfgen.edit.way import Way, way_of
from cfgen.measure.ruler import Ruler
from cfgen.measure.segmenter import soft_volumes
from cfgen.progress import working
from cfgen.scan.brain import BrainFinder, brain_finder
from cfgen.scan.open import Opened


@dataclass(frozen=True)
class Engine:
    """A bundle on a device; one serves any number of scans."""

    bundle: Bundle
    finder: BrainFinder
    device: torch.device

    @cached_property
    def models(self) -> Models:
        """Raises BundleError when a part is missing, damaged or does not fit."""
        return load_models(self.bundle, self.device)

    @cached_property
    def masked(self) -> Models:
        """With the network that takes masks. Raises BundleError as `models`."""
        control = load_control(self.bundle, self.models.unet, self.models.shape, self.device)
        return replace(self.models, control=control)

    @cached_property
    def sharp(self) -> Models:
        """With the diffusion decoder. Raises BundleError as `models`, and for a decoder of another
        autoencoder."""
        return replace(self.models, decoder=load_decoder(self.bundle, self.device))

    @cached_property
    def scm(self) -> Scm:
        """Raises BundleError when the bundle has no causal model, or a damaged one."""
        return load_scm(self.bundle)

    @property
    def ruler(self) -> Ruler:
        """What measures regions, where the bundle can."""
        net = self.finder.segmenter
        missing = "" if net else "the bundle has no segmenter"
        return Ruler(net, self.device, self.bundle.name, missing)

    def measure(self, opened: Opened) -> Measure | None:
        """Volumes of an image on the scan's grid, where the bundle can measure them."""
        net = self.finder.segmenter
        if net is None:
            return None
        return lambda image: soft_volumes(net, opened.volume.like(image), self.device)


def variables_of(bundle: Bundle, way: Way) -> tuple[Schema, Schema]:
    """What may be known of a scan, and what may be asked to change of it: where a causal model
    answers also its nodes, and regions in mm3, within what it saw. Names of the graph are known to
    an edit by conditions too, so that it can say that it does not change them.

    Raises BundleError for a causal model that is damaged.
    """
    known = bundle.schema
    if "scm" not in bundle.parts:
        return known, known
    everything = settable(load_scm(bundle).graph, known)
    if not way.causal:
        others = (v for v in everything.variables if v.name not in known.names)
        return known, Schema((*known.variables, *others))
    return conditions_of(everything), everything


def conditions_of(settable_nodes: Schema) -> Schema:
    """Without the volumes."""
    return Schema(tuple(v for v in settable_nodes.variables if v.unit != VOLUME_UNIT))


def load_engine(
    bundle: Path,
    device: str = "auto",
    skull_strip: SkullStrip = SKULL_STRIP,
    way: Way | None = None,
) -> Engine:
    """Raises BundleError when the bundle is damaged or lacks a part for the `way`, by default that
    of `way_of`."""
    with working("loading the model"):
        torch_device = pick_device(device)
        model = read_bundle(bundle)
        engine = Engine(model, brain_finder(model, skull_strip, torch_device), torch_device)
        way = way or way_of(model)
        # Now, rather than after the first scan was prepared.
        if way.causal:
            _ = engine.scm
        if way.generates:
            _ = engine.masked if way.masked else engine.models
    return engine
