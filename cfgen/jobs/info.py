"""What a bundle holds and what this machine offers, for people and for scripts."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cfgen import __version__
from cfgen.bundle import Bundle, read_bundle
from cfgen.config import GRIDS
from cfgen.data.conditions import Schema, Variable, number_text
from cfgen.device import number_type, pick_device
from cfgen.diffusion.drift import Drifting
from cfgen.measure.judge_errors import error_lines
from cfgen.measure.tissues import dice_lines
from cfgen.scan.gate import CHECKS

LIBRARIES = ("torch", "nibabel", "SimpleITK", "antspyx", "numpy", "scipy")


def describe_json(path: Path) -> dict[str, Any]:
    """What a bundle holds and what this machine offers, as data; keys that end in '_text' say in
    words what others say in numbers. Raises BundleError."""
    bundle = read_bundle(path)
    device = pick_device("auto")
    shape, spacing = GRIDS[bundle.preprocess.grid]
    size = " x ".join(map(str, shape))
    words = {c.measure: c.words for c in CHECKS}
    return {
        "cfgen": __version__,
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "device": str(device),
        "number_type": number_type(device),
        "threads": torch.get_num_threads(),
        "bundle": {
            "path": str(path),
            "name": bundle.name,
            "sha256": bundle.identity,
            "grid": bundle.preprocess.grid,
            "grid_text": f"grid {bundle.preprocess.grid}: {size} voxels of {spacing:g} mm",
            "conditions": bundle.schema.to_json(),
            "conditions_text": {v.name: _seen(v) for v in bundle.schema.variables},
            "parts": {name: _part(bundle, name) for name in bundle.parts},
            "data": bundle.data,
            "card": bundle.card,
            "card_text": {
                words[k]: f"{_short(a)} to {_short(b)}" for k, (a, b) in bundle.card.items()
            },
        },
    }


def _part(bundle: Bundle, name: str) -> dict[str, Any]:
    part = bundle.parts[name]
    size = (bundle.path / f"{name}.safetensors").stat().st_size
    units = (("scans", "scans"), ("people", "people"), ("steps", "steps"))
    training = [f"{part.trained[key]} {word}" for key, word in units if part.trained.get(key)]
    entry = {
        "sha256": part.sha256,
        "bytes": size,
        "size": f"{size / 1e6:.1f} MB",
        "trained": part.trained,
        "training": ", ".join(training),
    }
    if name == "unet":
        entry["training"] = ", ".join([*training, *_adaptation(part.config)])
    if name == "judge":
        targets = Schema.from_json(part.config["targets"])
        entry |= {k: part.config[k] for k in ("targets", "val")}
        entry["measured_text"] = [f"on val {x}" for x in error_lines(part.config["val"], targets)]
    if name == "tissues":
        entry |= {"dice": part.config["dice"], "measured_text": dice_lines(part.config["dice"])}
    if name == "controlnet":
        entry |= {k: part.config[k] for k in ("kind", "regions")}
        regions = ", ".join(part.config["regions"])
        entry["training"] = ", ".join([*training, f"by {part.config['kind']}: {regions}"])
    return entry


def _adaptation(config: dict[str, Any]) -> list[str]:
    """How a diffusion model came to other scans than its parent's, and its drifts."""
    words = []
    if "adapted" in config:
        how = config["adapted"]
        words.append(f"adapted to {how['scans']} scans ({how['tune']})")
    drifting = Drifting.from_json(config.get("drift"))
    words += [f"trained with drift {drifting.trained.text()}"] * bool(drifting.trained)
    words += [f"sampled with drift {drifting.sampling.text()}"] * bool(drifting.sampling)
    return words


def describe(path: Path) -> str:
    """The same as a page of text. Raises BundleError."""
    info = describe_json(path)
    bundle = info["bundle"]
    lines = [
        f"cfgen {info['cfgen']}, Python {info['python']}",
        "  " + ", ".join(f"{k} {v}" for k, v in info["libraries"].items()),
        f"  device {info['device']}, {info['threads']} threads, {info['number_type']} networks",
        "",
        f"bundle {bundle['name']} ({bundle['path']})",
        f"  sha256 {bundle['sha256']}",
        f"  {bundle['grid_text']}",
        "  conditions:",
        *(f"    {name}: {text}" for name, text in bundle["conditions_text"].items()),
        "  parts:",
    ]
    for name, part in bundle["parts"].items():
        lines.append(
            "    " + ", ".join(filter(None, (f"{name}: {part['size']}", part["training"])))
        )
        lines += [f"      {line}" for line in part.get("measured_text", [])]
    lines += [f"  {key}: {value}" for key, value in bundle["data"].items()]
    if bundle["card_text"]:
        lines.append("  training card, lowest and highest in training:")
        lines += [f"    {words}: {text}" for words, text in bundle["card_text"].items()]
    return "\n".join(lines)


def _short(number: float) -> str:
    """Three digits, and never an exponent for millilitres."""
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"


def _seen(variable: Variable) -> str:
    if variable.kind == "categorical":
        return " or ".join(variable.seen or variable.levels)
    if variable.support is None:
        return f"{variable.unit}, range in training unknown".lstrip(", ")
    low, high = (number_text(x) for x in variable.support)
    return f"{low} to {high} {variable.unit} in training".rstrip()
