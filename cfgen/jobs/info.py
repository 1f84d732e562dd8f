"""What a bundle holds and what this machine offers, for people and for scripts."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cfgen import __version__
from cfgen.bundle import read_bundle
from cfgen.config import GRIDS
from cfgen.data.conditions import Schema, number_text
from cfgen.device import fast_bf16, pick_device
from cfgen.measure.judge_errors import error_lines
from cfgen.scan.gate import CHECKS

LIBRARIES = ("torch", "nibabel", "SimpleITK", "antspyx", "numpy", "scipy")


def describe_json(path: Path) -> dict[str, Any]:
    """Everything `describe` says, as data. Raises BundleError."""
    bundle = read_bundle(path)
    device = pick_device("auto")
    return {
        "cfgen": __version__,
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "device": str(device),
        "fast_bf16": fast_bf16(device),
        "threads": torch.get_num_threads(),
        "bundle": {
            "path": str(path),
            "name": bundle.name,
            "sha256": bundle.identity,
            "grid": bundle.preprocess.grid,
            "conditions": bundle.schema.to_json(),
            "parts": {
                name: {
                    "sha256": part.sha256,
                    "bytes": (path / f"{name}.safetensors").stat().st_size,
                    "trained": part.trained,
                }
                | {k: part.config[k] for k in ("targets", "val") if name == "judge"}
                for name, part in bundle.parts.items()
            },
            "data": bundle.data,
            "card": bundle.card,
        },
    }


def describe(path: Path) -> str:
    """A page of text on a bundle and the environment. Raises BundleError."""
    info = describe_json(path)
    bundle = info["bundle"]
    shape, spacing = GRIDS[bundle["grid"]]
    lines = [
        f"cfgen {info['cfgen']}, Python {info['python']}",
        "  " + ", ".join(f"{k} {v}" for k, v in info["libraries"].items()),
        f"  device {info['device']}, {info['threads']} threads, "
        f"{'bf16' if info['fast_bf16'] else 'fp32'} networks",
        "",
        f"bundle {bundle['name']} ({bundle['path']})",
        f"  sha256 {bundle['sha256']}",
        f"  grid {bundle['grid']}: {' x '.join(map(str, shape))} voxels of {spacing:g} mm",
        "  conditions:",
    ]
    for variable in bundle["conditions"]:
        lines.append(f"    {variable['name']}: {_seen(variable)}")
    lines.append("  parts:")
    for name, part in bundle["parts"].items():
        scans = part["trained"].get("scans")
        steps = part["trained"].get("steps")
        seen = f", {scans} scans" if scans else ""
        seen += f", {steps} steps" if steps else ""
        lines.append(f"    {name}: {part['bytes'] / 1e6:.1f} MB{seen}")
        if name == "judge":
            targets = Schema.from_json(part["targets"])
            lines += [f"      on val {line}" for line in error_lines(part["val"], targets)]
    lines += [f"  {key}: {value}" for key, value in bundle["data"].items()]
    if bundle["card"]:
        lines.append("  training card, lowest and highest in training:")
        words = {c.measure: c.words for c in CHECKS}
        lines += [f"    {words[k]}: {a:.3g} to {b:.3g}" for k, (a, b) in bundle["card"].items()]
    return "\n".join(lines)


def _seen(variable: dict[str, Any]) -> str:
    if variable["kind"] == "categorical":
        return " or ".join(variable["seen"] or variable["levels"])
    if variable["support"] is None:
        return f"{variable['unit']}, range in training unknown".lstrip(", ")
    low, high = (number_text(x) for x in variable["support"])
    return f"{low} to {high} {variable['unit']} in training".rstrip()
