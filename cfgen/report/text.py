"""What a report says in words and numbers: regions, flags, provenance, a methods paragraph.

Everything is read from the sidecar of a counterfactual, so that a page says what was recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cfgen import config
from cfgen.data.conditions import number_text
from cfgen.data.regions import LOBES
from cfgen.edit.latent import ROUND_TRIP_LIMIT
from cfgen.measure.volumes import RegionVolume, sums

STATEMENT = "Synthetic image. Research use, not for diagnosis."
Sidecar = Mapping[str, Any]
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
    samples: Sequence[Mapping[str, Any]],
) -> list[tuple[str, list[RegionLine]]]:
    """The table of regions, a heading and its lines at a time."""
    factual, edited = sums(before), sums(after)
    spread = {(s["Structure"], s["Side"]): s for s in samples}

    def pair(name: str, side: str) -> Pair | None:
        key = (name, side)
        return Pair(factual[key], edited[key]) if key in factual and key in edited else None

    def line(name: str) -> RegionLine | None:
        total = pair(name, "both")
        if total is None:
            return None
        own = spread.get((name, "both"))
        return RegionLine(
            _NAMES.get(name, name.removeprefix("cortex_").replace("_", " ")),
            total,
            pair(name, "left"),
            pair(name, "right"),
            targets.get((name, "both")),
            (own["Low95_mm3"], own["High95_mm3"]) if own else None,
        )

    found = [(title, [x for n in names if (x := line(n))]) for title, names in _GROUPS]
    return [(title, lines) for title, lines in found if lines]


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


def flags(sidecar: Sidecar) -> list[Flag]:
    """What a reader must know before believing the picture, the worst first."""
    out = []
    gate = str(sidecar.get("Gate", {}).get("Verdict", "unknown"))
    code, said = _GATE.get(gate, ("gate unknown", "The sidecar says nothing of the gate."))
    out.append(Flag("ok" if gate == "ok" else "warn", code, said))
    error = float(sidecar["RoundTripError"])
    high = error > ROUND_TRIP_LIMIT
    out.append(
        Flag(
            "warn" if high else "ok",
            "round trip high" if high else "round trip ok",
            f"Round trip: {100 * error:.2f} % of the latent lost between the scan and its "
            f"reconstruction (at most {100 * ROUND_TRIP_LIMIT:g} % expected).",
        )
    )
    predicted = [n for n, v in sidecar["Factual"].items() if "predicted" in str(v.get("Source"))]
    if predicted:
        words = " and ".join(predicted)
        out.append(Flag("warn", "factual predicted", f"Factual {words} guessed from the image."))
    for warning in sidecar.get("Warnings", []):
        if "an extrapolation" in warning:
            out.append(Flag("warn", "extrapolation", _sentence(warning)))
        elif not (predicted and "predicted from the image" in warning):
            out.append(Flag("note", "warning", _sentence(warning)))
    order = ("warn", "note", "ok")
    return sorted(out, key=lambda flag: order.index(flag.level))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def conditions(sidecar: Sidecar) -> list[tuple[str, str, str, str, bool]]:
    """Name, factual value, its source, target and whether it changed, for each condition."""
    out = []
    for name, own in sidecar["Factual"].items():
        target = sidecar["Target"].get(name, own)
        changed = target["Value"] != own["Value"]
        source = str(own.get("Source", "")).replace("--from", "given")
        out.append((name, value_text(own), source, value_text(target), changed))
    return out


def value_text(entry: Mapping[str, Any]) -> str:
    """'62 years', 'F'."""
    value, unit = entry["Value"], entry.get("Unit") or ""
    text = number_text(round(float(value), 2)) if isinstance(value, int | float) else str(value)
    return f"{text} {unit}".strip()


def provenance(sidecar: Sidecar, files: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Name and value of everything that made the image; `files` are names and hashes beside it."""
    source = sidecar["Sources"][0]
    strip, recipe = sidecar.get("SkullStripping", {}), sidecar.get("Preprocessing", {})
    sampler = dict(sidecar.get("Sampler", {}))
    rows = [
        ("scan", f"{source['File']}, SHA-256 {source['SHA256']}"),
        *((name, value) for name, value in files),
        ("made by", ", ".join(f"{g['Name']} {g['Version']}" for g in sidecar["GeneratedBy"])),
        ("bundle", f"{sidecar['Bundle']['Name']}, SHA-256 {sidecar['Bundle']['SHA256']}"),
        ("intervention", str(sidecar["Intervention"])),
        ("sampler", ", ".join(f"{k.lower()} {v}" for k, v in sampler.items())),
        ("samples", str(sidecar.get("Samples", {}).get("Count", 1))),
        ("seed", str(sidecar.get("Seed"))),
        ("render", str(sidecar.get("Render"))),
        ("brain", f"{strip.get('Method')} ({strip.get('Note')})"),
        ("model grid", str(recipe.get("grid"))),
        ("device", f"{sidecar.get('Device')}, {sidecar.get('Threads')} threads"),
        ("versions", ", ".join(f"{k} {v}" for k, v in sidecar.get("Versions", {}).items())),
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
    "residual": "The difference between counterfactual and reconstruction was resampled to the "
    "scan's own grid and added to the scan, so that every voxel outside the brain is unchanged.",
    "warp": "The deformation from reconstruction to counterfactual (SyN) was applied to the scan "
    "on its own grid.",
    "latent": "The decoded counterfactual was resampled to the scan's own grid and replaces the "
    "brain there.",
}


def methods(sidecar: Sidecar, segmenter: str) -> str:
    """A paragraph to paste; `segmenter` is the bundle that measured the regions, '' for none."""
    made, sampler = sidecar["GeneratedBy"][0], sidecar["Sampler"]
    recipe = sidecar["Preprocessing"]
    shape, spacing = config.GRIDS.get(str(recipe["grid"]), ((0, 0, 0), 0.0))
    rows = conditions(sidecar)
    before = ", ".join(f"{n} {was} ({where})" for n, was, where, _, _ in rows)
    after = ", ".join(f"{n} {will}" for n, _, _, will, changed in rows if changed)
    brain = _BRAIN.get(str(sidecar["SkullStripping"]["Method"]), "was found")
    parts = [
        f"A counterfactual T1-weighted image was computed with {made['Name']} {made['Version']} "
        f"(bundle {sidecar['Bundle']['Name']}, SHA-256 {sidecar['Bundle']['SHA256'][:12]}).",
        f"The brain {brain}; the bias field was corrected (N4), and the brain was registered "
        f"affinely to {config.TEMPLATE_SPACE} and resampled to {'x'.join(map(str, shape))} voxels "
        f"of {spacing:g} mm.",
        f"The autoencoder's latent was expressed relative to the latent mean of the factual "
        f"conditions ({before}), inverted by DDIM in {sampler['steps']} steps to "
        f"{100 * sampler['depth']:g} % of the diffusion time, and denoised under the "
        f"counterfactual conditions ({after or 'unchanged'}) with guidance weight "
        f"{sampler['guidance']:g}.",
        f"The round trip under the factual conditions lost "
        f"{100 * float(sidecar['RoundTripError']):.2f} % of the latent.",
        _RENDER.get(str(sidecar["Render"]), ""),
    ]
    samples = sidecar.get("Samples")
    if samples:
        parts.append(
            f"The image is the mean of {samples['Count']} samples of the abduction (seed "
            f"{sidecar['Seed']}); standard deviations and 95 % intervals are the sampler's spread."
        )
    if segmenter:
        parts.append(
            f"Region volumes were measured on both images by the segmenter of bundle {segmenter} "
            "as summed probabilities."
        )
    return " ".join(part for part in parts if part)
