"""One scan of `augment-iap`: looked at once, rendered under a target, measured again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from cfgen.data.manifest import unique_key
from cfgen.data.table import Row
from cfgen.data.volume import Volume
from cfgen.edit.acquired import Acquired, Diffusion, acquire, scales_of
from cfgen.edit.protocol_record import DiffusionRecord, TissueLevels
from cfgen.edit.protocols import Aim, Place, Target, by_model, by_physics
from cfgen.edit.rerender import Effects, OwnNoise, Rerendered, rerender
from cfgen.errors import Notice
from cfgen.measure.anatomy import VolumeChange, volume_changes
from cfgen.measure.levels import Levels, probability, tissue_levels
from cfgen.measure.segmenter import Segmentation, segment, soft_volumes
from cfgen.nets.segmenter import Segmenter
from cfgen.progress import working
from cfgen.scan.brain import stripped_mask
from cfgen.scan.gate import Finding, Gate, cautions, fit_measures, judge, refuse, scan_measures
from cfgen.scan.moved import noise_sd
from cfgen.scan.open import read_scan
from cfgen.scan.prepare import Prepared, prepare
from cfgen.streams import Purpose, stream, torch_stream

# Percent: what a region's volume may change by before it is said.
MOST_CHANGE = 0.5
# Physics is the effects that it renders.
Way = Effects | Diffusion
Made = Rerendered | Acquired


@dataclass(frozen=True)
class Tools:
    """What looks at scans: the segmenter, what is to be refused, where it runs."""

    net: Segmenter
    gate: Gate
    device: torch.device


@dataclass(frozen=True)
class Looked:
    """A scan with its regions and the brightness of its tissues; `prepared` for a diffusion
    model."""

    volume: Volume
    segmentation: Segmentation
    levels: Levels
    findings: list[Finding]
    notices: list[Notice]
    noise_sd: float
    prepared: Prepared | None = None


def aim_of(way: Way, place: Place) -> Aim:
    return by_model(way.bundle.schema) if isinstance(way, Diffusion) else by_physics(place, way)


def recipe_of(way: Way) -> list[Any]:
    """What decides on an image beside scan, target and seed."""
    if isinstance(way, Diffusion):
        return ["diffusion", asdict(way.config), way.lock]
    return [asdict(way)]


def look(tools: Tools, row: Row, way: Way) -> Looked:
    """Raises ImageError for what is no head, or no T1w scan."""
    scan, notices = read_scan(row.image)
    with working("finding the regions"):
        segmentation = segment(tools.net, scan, tools.device)
    measures = scan_measures(scan, segmentation.mask, segmentation.confidence)
    findings = judge(measures, tools.gate.card)
    refuse(scan, findings, tools.gate)
    posteriors = segmentation.posteriors
    assert posteriors is not None
    sd, prepared = 0.0, None
    if isinstance(way, Diffusion):
        stripped = stripped_mask(scan)
        mask = segmentation.mask if stripped is None else stripped
        with working("aligning it with the template"):
            prepared = prepare(scan, mask, way.bundle.preprocess)
        findings += judge(fit_measures(prepared), tools.gate.card)
        refuse(scan, findings, tools.gate)
    elif way.noise != "keep":
        white = probability(posteriors, "white")
        sd = noise_sd(scan, segmentation.mask, white, posteriors.grid)
    levels = tissue_levels(scan, posteriors)
    said = [*notices, *cautions(findings)]
    return Looked(scan, segmentation, levels, findings, said, sd, prepared)


def made_of(
    looked: Looked, target: Target, way: Way, seed: int, whose: tuple[Row, int]
) -> Made | None:
    """The scan under a target, the `whose[1]`-th of its row; None where it stays as it is."""
    row, number = whose
    place = (seed, Purpose.PROTOCOLS, unique_key(row), number)
    if isinstance(way, Diffusion):
        if target.is_null:
            return None
        assert looked.prepared is not None
        scan = (looked.volume, looked.prepared, looked.levels)
        with working("denoising"):
            return acquire(way, scan, target, torch_stream(*place))
    if target.is_null and way.bias != "remove":
        return None
    assert target.renderings is not None
    noise = OwnNoise(looked.noise_sd, stream(*place))
    return rerender(looked.volume, looked.levels, target.renderings, way, noise)


def factual_scales(looked: Looked, target: Target) -> dict[str, float | str]:
    """Of the scan what of its scales the target changes."""
    if looked.prepared is None:
        return {}
    return {n: v for n, v in scales_of(looked.prepared).items() if n in target.scales}


def diffusion_record(way: Way, made: Made | None) -> DiffusionRecord | None:
    if not isinstance(way, Diffusion):
        return None
    config = way.config
    explained = round(made.contrast.explained, 4) if isinstance(made, Acquired) else None
    return DiffusionRecord(
        config.sampler, config.start_t, config.guidance, config.steps, way.lock, explained
    )


def levels_record(looked: Looked, made: Made | None) -> TissueLevels | None:
    if not isinstance(made, Rerendered):
        return None
    t1 = {n: round(x, 1) for n, x in made.curve.t1_ms.items()}
    levels = looked.levels
    return TissueLevels(
        round(levels.white, 3),
        round(levels.grey, 3),
        round(levels.fluid, 3),
        t1["white"],
        t1["grey"],
        t1["fluid"],
    )


def changes_of(
    tools: Tools, looked: Looked, written: Volume, made: Made | None
) -> list[VolumeChange]:
    """Of the image as it was written: what rounding, clipping, noise and blur did is in it."""
    before = looked.segmentation.volumes
    if made is None:
        return volume_changes(before, before)
    with working("measuring its regions"):
        back = looked.volume.like(made.undone(written.data))
        return volume_changes(before, soft_volumes(tools.net, back, tools.device))


def warned(changes: Sequence[VolumeChange]) -> list[Notice]:
    far = [c for c in changes if abs(c.percent) > MOST_CHANGE]
    if not far:
        return []
    worst = max(far, key=lambda c: abs(c.percent))
    return [
        Notice(
            "volume-change",
            f"{len(far)} regions changed by more than {MOST_CHANGE:g} %, most {worst.structure} "
            f"({worst.side}) by {worst.percent:+.1f} %: the labels may not fit any more",
        )
    ]
