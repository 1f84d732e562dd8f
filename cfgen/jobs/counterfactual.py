"""The main job: what would this brain look like under other conditions?"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cfgen import __version__
from cfgen.bundle import Bundle, read_bundle
from cfgen.config import EDIT, RENDER, SEED, SKULL_STRIP, Edit, Render, SkullStrip
from cfgen.data.bids import bids_values
from cfgen.data.conditions import Intervention
from cfgen.data.volume import (
    Volume,
    header_warnings,
    read_volume,
    refuse_existing,
    strip_suffix,
    write_atomically,
    write_like,
    write_new,
)
from cfgen.errors import UsageError
from cfgen.jobs.brain import Brain, BrainFinder, brain_finder, find_brain, grid_text
from cfgen.jobs.device import pick_device
from cfgen.jobs.gate import Finding, Gate, cautions, examine, record
from cfgen.jobs.models import LatentEdit, Models, edit_latent, load_models
from cfgen.jobs.pictures import counterfactual_picture
from cfgen.jobs.predict import predict_conditions
from cfgen.jobs.prepare import Prepared
from cfgen.jobs.render import render

log = logging.getLogger("cfgen")
Values = Mapping[str, float | str]
# Above this the inversion lost more of the subject than an edit should rest on.
ROUND_TRIP_LIMIT = 0.01


@dataclass(frozen=True)
class Options:
    render: Render = RENDER
    edit: Edit = EDIT
    difference: bool = False
    picture: bool = True
    overwrite: bool = False
    seed: int = SEED
    # Go on with a scan that the gate refuses; the sidecar says so.
    force: bool = False


@dataclass(frozen=True)
class Engine:
    """A bundle with its networks on a device; one serves any number of scans."""

    bundle: Bundle
    models: Models
    finder: BrainFinder
    device: torch.device


@dataclass(frozen=True)
class Factual:
    """The subject's conditions and where each came from."""

    values: dict[str, float | str]
    sources: dict[str, str]


@dataclass(frozen=True)
class Result:
    """The files of one target and what was said about it."""

    image: Path
    label: str
    target: dict[str, float | str]
    round_trip: float
    warnings: list[str] = field(default_factory=list)


def load_engine(
    bundle: Path, device: str = "auto", skull_strip: SkullStrip = SKULL_STRIP
) -> Engine:
    """Raises BundleError when the bundle is damaged or lacks a part."""
    where = pick_device(device)
    found = read_bundle(bundle)
    finder = brain_finder(found, skull_strip, where)
    return Engine(found, load_models(found, where), finder, where)


def counterfactual(
    engine: Engine,
    scan_path: Path,
    outputs: Mapping[Intervention, Path],
    *,
    given: Values | None = None,
    given_source: str = "--from",
    mask_path: Path | None = None,
    options: Options = Options(),
) -> list[Result]:
    """Write a counterfactual of one scan for every intervention, each with its sidecar.

    `given` are the factual conditions that the caller knows, in raw units; what is missing is
    looked for beside the scan (BIDS) and then predicted. Targets share one inversion. Either every
    file appears or none. Raises CfgenError.
    """
    files = {i: _files(path, options) for i, path in outputs.items()}
    _refuse_existing([f for group in files.values() for f in group.values()], options.overwrite)
    scan = read_volume(scan_path)
    log.info("%s: %s", scan_path.name, grid_text(scan.grid))
    warnings = header_warnings(scan_path)
    known = _known_conditions(engine.bundle, scan_path, given or {}, given_source)
    _check_targets(list(outputs), known, engine.bundle)

    brain = find_brain(scan, mask_path, engine.finder)
    warnings += [brain.warning] if brain.warning else []
    volume_ml = float(brain.mask.sum()) * scan.grid.voxel_mm3 / 1e3
    log.info("brain: %.0f mL, from %s (%s)", volume_ml, brain.source, brain.note)
    gate = Gate(engine.bundle.card, options.force)
    prepared, findings = examine(scan, brain, engine.bundle.preprocess, gate)
    warnings += cautions(findings)
    log.info("aligned with the template")
    factual, predicted = _factual(engine, prepared, known)
    warnings += predicted
    for name, value in factual.values.items():
        log.info("factual %s %s: %s", name, _text(value), factual.sources[name])
    targets = {i: i.apply(factual.values) for i in outputs}
    edit, decoded = _edit(engine, prepared, factual, list(targets.values()), options)
    log.info("inverted in %d steps, round trip %.3f %%", options.edit.steps, 100 * edit.round_trip)
    if edit.round_trip > ROUND_TRIP_LIMIT:
        warnings.append(
            f"the round trip lost {edit.round_trip:.1%} of the latent "
            f"(expected at most {ROUND_TRIP_LIMIT:.0%}); more --steps bring it down"
        )
    results, written = [], []
    try:
        for (intervention, target), image in zip(targets.items(), decoded[1:], strict=True):
            own = [*warnings, *engine.bundle.schema.support_warnings(target)]
            if intervention.is_null(factual.values):
                data = scan.data
            else:
                data = render(scan, prepared, decoded[0], image, options.render)
            paths = files[intervention]
            written += list(paths.values())
            label = intervention.label()
            sidecar = _provenance(
                engine, scan, brain, prepared, findings, factual, target, label, edit, own, options
            )
            _write(scan, data, label, sidecar, paths, prepared)
            log.info("%s written", label)
            results.append(Result(paths["image"], label, target, edit.round_trip, own))
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return results


def _files(image: Path, options: Options) -> dict[str, Path]:
    stem = image.with_name(strip_suffix(image))
    files = {"image": image, "sidecar": stem.with_name(stem.name + ".json")}
    if options.difference:
        files["difference"] = stem.with_name(stem.name + "_diff.nii.gz")
    if options.picture:
        files["picture"] = stem.with_name(stem.name + ".png")
    return files


def _refuse_existing(paths: Sequence[Path], overwrite: bool) -> None:
    if len(set(paths)) < len(paths):
        double = next(p for p in paths if list(paths).count(p) > 1)
        raise UsageError(double, "two outputs would have this name", fix="ask for fewer targets")
    for path in paths:
        refuse_existing(path, overwrite)


def _known_conditions(bundle: Bundle, scan: Path, given: Values, source: str) -> Factual:
    values: dict[str, float | str] = dict(given)
    sources = dict.fromkeys(given, source)
    if bundle.schema.missing(values):
        beside, where = bids_values(scan, bundle.schema)
        for name, value in beside.items():
            if name not in values:
                values[name], sources[name] = value, where
    return Factual(values, sources)


def _check_targets(interventions: list[Intervention], known: Factual, bundle: Bundle) -> None:
    """Refuse impossible targets before anything is computed, where the factual value is known."""
    missing = bundle.schema.missing(known.values)
    if not missing:
        for intervention in interventions:
            intervention.apply(known.values)
    elif "predictor" not in bundle.parts:
        raise UsageError(
            "--from",
            f"{' and '.join(missing)} of the scan unknown, and the bundle has no predictor",
            "the factual conditions",
            f"say them, for example --from {missing[0]}=...",
        )


def _factual(engine: Engine, prepared: Prepared, known: Factual) -> tuple[Factual, list[str]]:
    """Fill what is missing by prediction, and say so."""
    missing = engine.bundle.schema.missing(known.values)
    if not missing:
        return known, []
    guess = predict_conditions(engine.bundle, prepared.image, engine.device)
    values = dict(known.values) | {name: guess[name] for name in missing}
    sources = dict(known.sources) | dict.fromkeys(missing, "predicted from the image")
    said = ", ".join(f"{n}={_text(values[n])}" for n in missing)
    return Factual(values, sources), [
        f"factual {said} predicted from the image, not measured; say --from {said} to set it"
    ]


def _text(value: float | str) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _edit(
    engine: Engine, prepared: Prepared, factual: Factual, targets: list[Any], options: Options
) -> tuple[LatentEdit, list[np.ndarray]]:
    """The latent edit, and the decoded reconstruction and targets on the model grid."""
    schema, models = engine.bundle.schema, engine.models

    def condition(values: Values) -> torch.Tensor:
        return torch.from_numpy(schema.encode(values))[None].to(engine.device)

    z0 = models.encode(torch.from_numpy(prepared.image)[None, None])
    edit = edit_latent(
        models, z0, condition(factual.values), [condition(t) for t in targets], options.edit
    )
    latents = [edit.reconstruction, *edit.counterfactuals]
    return edit, [models.decode(z)[0, 0].cpu().numpy() for z in latents]


def _write(
    scan: Volume,
    data: np.ndarray,
    label: str,
    sidecar: dict[str, Any],
    paths: dict[str, Path],
    prepared: Prepared,
) -> None:
    description = f"SYNTHETIC: cfgen {__version__} counterfactual {label}"
    write_like(scan, data, paths["image"], description=description)
    if "difference" in paths:
        difference = scan.like(data - scan.data)
        write_new(difference, paths["difference"], np.float32, description=description)
    if "picture" in paths:
        title = f"{scan.path.name if scan.path else 'scan'}: counterfactual {label} (synthetic)"
        counterfactual_picture(
            scan.data, data, scan.grid, prepared.native_mask, paths["picture"], title
        )
    text = json.dumps(sidecar, indent=2) + "\n"
    write_atomically(paths["sidecar"], lambda temporary: temporary.write_text(text))


def _provenance(
    engine: Engine,
    scan: Volume,
    brain: Brain,
    prepared: Prepared,
    findings: list[Finding],
    factual: Factual,
    target: Values,
    label: str,
    edit: LatentEdit,
    warnings: list[str],
    options: Options,
) -> dict[str, Any]:
    """The sidecar. No time and no absolute path: the same run writes the same bytes."""
    assert scan.path is not None
    units = {v.name: v.unit for v in engine.bundle.schema.variables}
    return {
        "Synthetic": True,
        "Description": "Counterfactual MRI made by a model; research use, not for diagnosis",
        "GeneratedBy": [{"Name": "cfgen", "Version": __version__}],
        "Sources": [
            {
                "File": scan.path.name,
                "SHA256": hashlib.sha256(scan.path.read_bytes()).hexdigest(),
            }
        ],
        "Bundle": {"Name": engine.bundle.name, "SHA256": engine.bundle.identity},
        "Intervention": label,
        "Factual": {
            n: {"Value": v, "Unit": units[n], "Source": factual.sources[n]}
            for n, v in factual.values.items()
        },
        "Target": {n: {"Value": v, "Unit": units[n]} for n, v in target.items()},
        "RoundTripError": round(edit.round_trip, 6),
        "Render": options.render,
        "Sampler": {"Name": "DDIM", **asdict(options.edit)},
        "Seed": options.seed,
        "SkullStripping": {"Method": brain.source, "Note": brain.note},
        "Preprocessing": {
            **asdict(engine.bundle.preprocess),
            "IntensityScale": prepared.scale,
            "TemplateToScan": prepared.to_native.round(6).tolist(),
        },
        "Gate": record(findings),
        "Versions": _versions(),
        "Device": str(engine.device),
        "Threads": torch.get_num_threads(),
        "Warnings": warnings,
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("torch", "antspyx", "SimpleITK", "nibabel", "numpy", "scipy")
    return {name: version(name) for name in names}
