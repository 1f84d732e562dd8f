"""What a report says in words and numbers: regions, flags, provenance, a methods paragraph.

Everything is read from the sidecar of a counterfactual, so that a page says what was recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cfgen import config
from cfgen.data.conditions import number_text
from cfgen.data.regions import LOBES
from cfgen.data.volumes import RegionVolume, sums
from cfgen.edit.latent import ROUND_TRIP_LIMIT
from cfgen.edit.sidecar import FactualValue, Sidecar, TargetValue, region_volumes
from cfgen.edit.tissue import VOLUME_LIMIT

STATEMENT = "Synthetic image. Research use, not for diagnosis."
# Of (structure, side) in mm3; a structure with two sides has its sum under 'both'.
Volumes = Mapping[tuple[str, str], float]
_GROUPS = (
    ("Whole", ("tiv", "brain")),
    (
        "Fluid",
        (
            "lateral_ventricle",
            "inferior_lateral_ventricle",
            "third_ventricle",
            "fourth_ventricle",
            "csf",
        ),
    ),
    ("Cortex", ("cortex", *(f"cortex_{lobe}" for lobe in LOBES))),
    ("White matter", ("cerebral_wm",)),
    (
        "Deep grey matter",
        ("hippocampus", "amygdala", "thalamus", "caudate", "putamen", "pallidum", "accumbens"),
    ),
    ("Hindbrain", ("cerebellum_gm", "cerebellum_wm", "brainstem", "other_brain")),
)
_NAMES = {
    "tiv": "all inside the skull (TIV)",
    "brain": "brain tissue",
    "csf": "fluid over the brain",
    "cortex": "whole cortex",
    "cerebral_wm": "cerebral white matter",
    "cerebellum_gm": "cerebellar grey matter",
    "cerebellum_wm": "cerebellar white matter",
    "other_brain": "other tissue",
}


@dataclass(frozen=True)
class Pair:
    """A volume in mm3 before and after."""

    factual: float
    edited: float

    @property
    def percent(self) -> float | None:
        return 100 * (self.edited / self.factual - 1) if self.factual > 0 else None


@dataclass(frozen=True)
class RegionLine:
    """A structure: its total, its sides where it has two, the target where it is known, and the
    95 % interval of the samples where there are any, all in mm3."""

    name: str
    total: Pair
    left: Pair | None
    right: Pair | None
    target: float | None
    interval: tuple[float, float] | None


def region_groups(
    before: Sequence[RegionVolume],
    after: Sequence[RegionVolume],
    targets: Volumes,
    sidecar: Sidecar,
) -> list[tuple[str, list[RegionLine]]]:
    """The table of regions, a heading and its lines at a time.

    What the sidecar records of a region that had a target stands for what was measured now:
    factual, target and achieved volume are then by one instrument. `targets` that are given stand
    for the sidecar's.
    """
    factual, edited = sums(before), sums(after)
    records = sidecar.regions
    achieved = region_volumes(records, "achieved")
    edited |= achieved
    factual |= {k: v for k, v in region_volumes(records, "factual").items() if k in achieved}
    targets = {**region_volumes(records, "target"), **targets}
    samples = sidecar.samples.regions if sidecar.samples else []
    spread = {(s.structure, s.side): s for s in samples}

    def pair(name: str, side: str) -> Pair | None:
        key = (name, side)
        return Pair(factual[key], edited[key]) if key in factual and key in edited else None

    def line(name: str) -> RegionLine | None:
        total = pair(name, "both")
        if total is None:
            return None
        sample = spread.get((name, "both"))
        return RegionLine(
            _NAMES.get(name, name.removeprefix("cortex_").replace("_", " ")),
            total,
            pair(name, "left"),
            pair(name, "right"),
            targets.get((name, "both")),
            (sample.low95, sample.high95) if sample else None,
        )

    groups = [(title, [x for n in names if (x := line(n))]) for title, names in _GROUPS]
    return [(title, lines) for title, lines in groups if lines]


@dataclass(frozen=True)
class Flag:
    """`code` is short, for a filter; `text` says it in full."""

    level: Literal["ok", "note", "warn"]
    code: str
    text: str


_GATE = {
    "ok": ("gate ok", "The input gate found nothing unusual in the scan."),
    "warn": (
        "gate warned",
        "The input gate found something unusual: see the warnings.",
    ),
    "refuse": ("gate forced", "The input gate refused the scan, and was overruled with --force."),
}


def _fidelity(sidecar: Sidecar) -> Flag:
    """How well the edit did what it was to do, by its own account."""
    error = sidecar.causal.worst_volume_error if sidecar.causal is not None else None
    if error is not None:
        return Flag(
            "ok" if error <= VOLUME_LIMIT else "warn",
            "volumes met" if error <= VOLUME_LIMIT else "a volume missed",
            f"Every region's map was moved to within {100 * error:.1f} % of its volume (at most "
            f"{100 * VOLUME_LIMIT:g} % expected).",
        )
    lost = sidecar.round_trip_error or 0.0
    high = lost > ROUND_TRIP_LIMIT
    return Flag(
        "warn" if high else "ok",
        "round trip high" if high else "round trip ok",
        f"Round trip: {100 * lost:.2f} % of the latent lost between the scan and its "
        f"reconstruction (at most {100 * ROUND_TRIP_LIMIT:g} % expected).",
    )


def flags(sidecar: Sidecar) -> list[Flag]:
    """What a reader must know before believing the picture, the worst first."""
    raised = []
    gate = sidecar.gate.verdict
    raised.append(Flag("ok" if gate == "ok" else "warn", *_GATE[gate]))
    raised.append(_fidelity(sidecar))
    predicted = [n for n, v in sidecar.factual.items() if v.predicted]
    if predicted:
        words = " and ".join(predicted)
        raised.append(Flag("warn", "factual predicted", f"Factual {words} guessed from the image."))
    for notice in sidecar.warnings:
        if notice.code == "extrapolation":
            raised.append(Flag("warn", "extrapolation", _sentence(notice.text)))
        elif notice.code not in ("predicted", "round-trip"):
            raised.append(Flag("note", "warning", _sentence(notice.text)))
    order = ("warn", "note", "ok")
    return sorted(raised, key=lambda flag: order.index(flag.level))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def conditions(sidecar: Sidecar) -> list[tuple[str, str, str, str, bool]]:
    """Name, factual value, its source, target and whether it changed, for each condition."""
    rows = []
    for name, factual in sidecar.factual.items():
        target = sidecar.target.get(name, factual)
        changed = target.value != factual.value
        source = factual.source.replace("--from", "given")
        rows.append((name, value_text(factual), source, value_text(target), changed))
    return rows


def value_text(entry: FactualValue | TargetValue) -> str:
    """'62 years', 'F'."""
    value = entry.value
    text = number_text(round(value, 2)) if isinstance(value, int | float) else value
    return f"{text} {entry.unit}".strip()


def _way(sidecar: Sidecar) -> list[tuple[str, str]]:
    """How the edit was made: by a sampler, by a causal model, or both."""
    rows = []
    if sidecar.sampler is not None:
        settings = vars(sidecar.sampler).items()
        rows.append(("sampler", ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in settings)))
    causal = sidecar.causal
    if causal is not None:
        rows.append(("rates", f"{causal.rates}: {causal.rates_meaning}"))
        rows.append(("head", f"its size is {causal.head}"))
        rows.append(("noise", causal.noise))
        if causal.jacobian is not None:
            low, high = causal.jacobian
            rows.append(("local volume", f"scan over counterfactual {low:g} to {high:g}"))
        if causal.centile is not None:
            rows.append(("centiles", f"{causal.centile.text} ({causal.centile.norm})"))
    return rows


def provenance(sidecar: Sidecar, files: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Name and value of everything that made the image; `files` are names and hashes beside it."""
    source, strip = sidecar.sources[0], sidecar.skull_stripping
    samples = sidecar.samples.count if sidecar.samples else 1
    rows = [
        ("scan", f"{source.file}, SHA-256 {source.sha256}"),
        *((name, value) for name, value in files),
        ("made by", ", ".join(f"{g.name} {g.version}" for g in sidecar.generated_by)),
        ("bundle", f"{sidecar.bundle.name}, SHA-256 {sidecar.bundle.sha256}"),
        ("intervention", sidecar.intervention),
        *_way(sidecar),
        ("samples", str(samples)),
        ("seed", str(sidecar.seed)),
        ("by", sidecar.by or ""),
        ("render", sidecar.render),
        ("brain", f"{strip.method} ({strip.note})"),
        ("model grid", str(sidecar.preprocessing.get("grid"))),
        ("device", f"{sidecar.device}, {sidecar.number_type}, {sidecar.threads} threads"),
        ("versions", ", ".join(f"{k} {v}" for k, v in sidecar.versions.items())),
    ]
    return rows


_BRAIN = {
    "mask": "was given as a mask",
    "stripped": "had been extracted beforehand",
    "segmenter": "was found by the bundle's segmenter",
    "template": "was found by a head template",
    "synthstrip": "was extracted with SynthStrip",
    "hd-bet": "was extracted with HD-BET",
}
_RENDER = {
    "tissue": "The regions' probability maps, corrected by the scan's intensities, were grown and "
    "shrunk to these volumes by a flow inside the skull, and one displacement field moved the "
    "scan's own voxels.",
    "residual": "The difference between counterfactual and reconstruction was resampled to the "
    "scan's own grid and added to the scan, so that every voxel outside the brain is unchanged.",
    "warp": "The deformation from reconstruction to counterfactual (SyN) was applied to the scan "
    "on its own grid.",
    "latent": "The decoded counterfactual was resampled to the scan's own grid and replaces the "
    "brain there.",
}

_FROM = {
    "nothing": "",
    "factual": " away from the factual ones",
    "masks": " away from the factual masks",
}
_CONTROL = {
    "masks": "a control network beside it",
    "concatenate": "as further channels of its input",
}
_FILLED = (
    "Where tissue had been stretched, the share of each voxel of cortex and outer fluid that was "
    "new was taken from the diffusion model's difference added to the scan, and white matter took "
    "on its change of brightness, smooth over centimetres; nothing else of it was taken."
)


def _made_by(sidecar: Sidecar, before: str, after: str) -> list[str]:
    """Sentences on how the conditions `before` became those `after`."""
    sentences = []
    if sidecar.causal is not None:
        rate = {
            "cohort": "as people of different age differ",
            "within": "as one person changes with age",
        }[sidecar.causal.rates]
        sentences.append(
            f"A structural causal model of region volumes was abducted under the factual "
            f"conditions ({before}), and predicted every region's volume under the counterfactual "
            f"ones ({after}), {rate}, the size of the head being {sidecar.causal.head}."
        )
    sampler = sidecar.sampler
    if sampler is None:
        return sentences
    told = ""
    if sidecar.masks is not None:
        sentences.append(
            "How much of each voxel of the model grid a region fills was moved by a flow inside "
            "the skull until the regions had these volumes, and told to the diffusion model "
            f"({_CONTROL[sidecar.masks.control]})."
        )
        told = " and masks"
    return [
        *sentences,
        f"The autoencoder's latent was expressed relative to the latent mean of the factual "
        f"conditions ({before}), inverted by DDIM in {sampler.steps} steps to "
        f"{100 * sampler.depth:g} % of the diffusion time under these conditions{told}, and "
        f"denoised under the counterfactual conditions ({after}){told} with guidance weight "
        f"{sampler.guidance:g}{_FROM[sampler.guidance_from]}.",
        f"The round trip under the factual conditions lost "
        f"{100 * (sidecar.round_trip_error or 0.0):.2f} % of the latent.",
    ]


def methods(sidecar: Sidecar, segmenter: str) -> str:
    """A paragraph to paste; `segmenter` is the bundle that measured the regions, '' for none."""
    software = sidecar.generated_by[0]
    shape, spacing = config.GRIDS.get(str(sidecar.preprocessing.get("grid")), ((0, 0, 0), 0.0))
    rows = conditions(sidecar)
    before = ", ".join(f"{n} {was} ({where})" for n, was, where, _, _ in rows)
    after = ", ".join(f"{n} {will}" for n, _, _, will, changed in rows if changed)
    brain = _BRAIN.get(sidecar.skull_stripping.method, "was found")
    parts = [
        f"A counterfactual T1-weighted image was computed with {software.name} {software.version} "
        f"(bundle {sidecar.bundle.name}, SHA-256 {sidecar.bundle.sha256[:12]}).",
        f"The brain {brain}; the bias field was corrected (N4), and the brain was registered "
        f"affinely to {config.TEMPLATE_SPACE} and resampled to {'x'.join(map(str, shape))} voxels "
        f"of {spacing:g} mm.",
        *_made_by(sidecar, before, after or "unchanged"),
        _RENDER[sidecar.render],
        _FILLED if sidecar.by == "tissue+masks" else "",
    ]
    if sidecar.samples:
        parts.append(
            f"The image is the mean of {sidecar.samples.count} samples (seed {sidecar.seed}); "
            f"standard deviations and 95 % intervals are {sidecar.samples.spread}."
        )
    if segmenter:
        parts.append(
            f"Region volumes were measured on both images by the segmenter of bundle {segmenter} "
            "as summed probabilities."
        )
    return " ".join(part for part in parts if part)
