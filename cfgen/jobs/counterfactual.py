"""The main job: what would this brain look like under other conditions?"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cfgen import __version__
from cfgen.batch.resume import fingerprint
from cfgen.bundle import Bundle, read_bundle
from cfgen.config import EDIT, RENDER, SEED, SKULL_STRIP, Edit, Render, SkullStrip
from cfgen.data.conditions import Intervention
from cfgen.data.volume import (
    SYNTHETIC,
    Volume,
    file_sha256,
    header_warnings,
    is_synthetic,
    read_volume,
    refuse_existing,
    strip_suffix,
    write_atomically,
    write_like,
    write_new,
)
from cfgen.device import pick_device
from cfgen.edit.latent import (
    ROUND_TRIP_LIMIT,
    LatentEdit,
    Models,
    condition_of,
    edit_latent,
    load_models,
)
from cfgen.edit.samples import Measure, Sampled, sample_noise, summarise
from cfgen.edit.samples import record as samples_record
from cfgen.errors import UsageError
from cfgen.measure.ruler import Regions, Ruler
from cfgen.measure.segmenter import segment
from cfgen.report.page import Run, write_page
from cfgen.scan.brain import Brain, BrainFinder, brain_finder, find_brain
from cfgen.scan.factual import (
    Factual,
    Values,
    check_targets,
    complete,
    known_conditions,
    value_text,
)
from cfgen.scan.gate import Finding, Gate, cautions, examine, record
from cfgen.scan.pictures import counterfactual_picture
from cfgen.scan.prepare import Prepared
from cfgen.scan.render import render
from cfgen.space.grids import grid_text

log = logging.getLogger("cfgen")


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
    # The image is the mean of so many samples (edit/samples.py).
    samples: int = 1
    # Also what the model sees of the scan; also the page of report/page.py.
    reconstruction: bool = False
    report: bool = False


@dataclass(frozen=True)
class Engine:
    """A bundle with its networks on a device; one serves any number of scans."""

    bundle: Bundle
    models: Models
    finder: BrainFinder
    device: torch.device


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
    if options.samples < 1:
        raise UsageError("--samples", f"{options.samples}", "1 or more")
    files = {i: output_files(path, options) for i, path in outputs.items()}
    for group in files.values():
        _clear_leftovers(group)
    _refuse_existing([f for group in files.values() for f in group.values()], options.overwrite)
    scan = read_volume(scan_path)
    log.info("%s: %s", scan_path.name, grid_text(scan.grid))
    warnings = header_warnings(scan_path)
    known = known_conditions(engine.bundle, scan_path, given or {}, given_source)
    check_targets(list(outputs), known, engine.bundle)

    brain = find_brain(scan, mask_path, engine.finder)
    warnings += [brain.warning] if brain.warning else []
    volume_ml = float(brain.mask.sum()) * scan.grid.voxel_mm3 / 1e3
    log.info("brain: %.0f mL, from %s (%s)", volume_ml, brain.source, brain.note)
    gate = Gate(engine.bundle.card, options.force)
    prepared, findings = examine(scan, brain, engine.bundle.preprocess, gate)
    warnings += cautions(findings)
    log.info("aligned with the template")
    factual, predicted = complete(engine.bundle, prepared.image, engine.device, known)
    warnings += predicted
    for name, value in factual.values.items():
        log.info("factual %s %s: %s", name, value_text(value), factual.sources[name])
    targets = {i: i.apply(factual.values) for i in outputs}
    edits = _edits(engine, prepared, factual, list(targets.values()), options)
    edit, rebuilt = edits[0], [_decode(engine, e.reconstruction) for e in edits]
    log.info("inverted in %d steps, round trip %.3f %%", options.edit.steps, 100 * edit.round_trip)
    if edit.round_trip > ROUND_TRIP_LIMIT:
        warnings.append(
            f"the round trip lost {edit.round_trip:.1%} of the latent "
            f"(expected at most {ROUND_TRIP_LIMIT:.0%}); more --steps bring it down"
        )
    regions = _regions(engine, scan) if options.report else None
    results, written = [], []
    try:
        for number, (intervention, target) in enumerate(targets.items()):
            own = [*warnings, *engine.bundle.schema.support_warnings(target)]
            images: Iterable[np.ndarray]
            if intervention.is_null(factual.values):
                images = itertools.repeat(scan.data, options.samples)
            else:
                images = _images(engine, scan, prepared, edits, rebuilt, number, options.render)
            sampled = summarise(images, _measure(engine, scan) if options.samples > 1 else None)
            paths = files[intervention]
            written += list(paths.values())
            label = intervention.label()
            sidecar = _provenance(
                engine, scan, brain, prepared, findings, factual, target, label, edit, own, options
            )
            sidecar["Fingerprint"] = request(
                engine, scan_path, mask_path, known.values, label, options
            )
            if "sd" in paths:
                # Only here, so that one sample leaves the bytes it always left.
                sidecar["Samples"] = samples_record(sampled, options.samples, paths["sd"].name)
            if "reconstruction" in paths:
                sidecar["Reconstruction"] = paths["reconstruction"].name
            seen = None
            if options.reconstruction or options.report:
                seen = render(scan, prepared, rebuilt[0], rebuilt[0], "latent")
            _write(scan, sampled, seen, label, paths, prepared)
            if "report" in paths:
                assert regions is not None
                _report(engine, scan, sampled, seen, sidecar, paths, regions)
            _write_record(sidecar, paths["sidecar"])
            log.info("%s written", label)
            results.append(Result(paths["image"], label, target, edit.round_trip, own))
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return results


def request(
    engine: Engine,
    scan: Path,
    mask: Path | None,
    known: Values,
    label: str,
    options: Options,
) -> str:
    """The fingerprint of one target: all that decides its image, before anything is computed.

    Raises ImageError when a file is missing.
    """
    how = [engine.bundle.identity, engine.finder.how, options.render, asdict(options.edit)]
    return fingerprint((scan, mask), [*how, options.seed, options.samples, dict(known), label])


def output_files(image: Path, options: Options) -> dict[str, Path]:
    """The files of one target by what they are."""
    stem = image.with_name(strip_suffix(image))
    files = {"image": image, "sidecar": stem.with_name(stem.name + ".json")}
    if options.difference:
        files["difference"] = stem.with_name(stem.name + "_diff.nii.gz")
    if options.samples > 1:
        files["sd"] = stem.with_name(stem.name + "_sd.nii.gz")
    if options.reconstruction:
        files["reconstruction"] = stem.with_name(stem.name + "_rec.nii.gz")
    if options.report:
        files["report"] = stem.with_name(stem.name + ".html")
    if options.picture:
        files["picture"] = stem.with_name(stem.name + ".png")
    return files


def _clear_leftovers(files: dict[str, Path]) -> None:
    """Images that say they are ours, without their sidecar, are of a run that was killed."""
    image = files["image"]
    if image.exists() and not files["sidecar"].exists() and is_synthetic(image):
        for path in files.values():
            path.unlink(missing_ok=True)


def _refuse_existing(paths: Sequence[Path], overwrite: bool) -> None:
    if len(set(paths)) < len(paths):
        double = next(p for p in paths if list(paths).count(p) > 1)
        raise UsageError(double, "two outputs would have this name", fix="ask for fewer targets")
    for path in paths:
        refuse_existing(path, overwrite)


def _edits(
    engine: Engine, prepared: Prepared, factual: Factual, targets: list[Any], options: Options
) -> list[LatentEdit]:
    """The latent edit of every sample, the deterministic one first."""
    schema, models = engine.bundle.schema, engine.models
    z0 = models.encode(torch.from_numpy(prepared.image)[None, None])
    c, *others = (condition_of(schema, v, engine.device) for v in (factual.values, *targets))
    edits = []
    for sample in range(options.samples):
        noise = sample_noise(z0.shape, options.seed, sample, z0.device)
        edits.append(edit_latent(models, z0, c, others, options.edit, noise))
    return edits


def _decode(engine: Engine, z0: torch.Tensor) -> np.ndarray:
    """A latent (1, C, d, h, w) as an image (D, H, W) on the model grid."""
    return np.asarray(engine.models.decode(z0)[0, 0].cpu().numpy())


def _images(
    engine: Engine,
    scan: Volume,
    prepared: Prepared,
    edits: list[LatentEdit],
    rebuilt: list[np.ndarray],
    number: int,
    how: Render,
) -> Iterator[np.ndarray]:
    """The counterfactual scan of every sample, for target `number`."""
    for edit, factual in zip(edits, rebuilt, strict=True):
        yield render(scan, prepared, factual, _decode(engine, edit.counterfactuals[number]), how)


def _measure(engine: Engine, scan: Volume) -> Measure | None:
    """Volumes of an image on the scan's grid, where the bundle can measure them."""
    net = engine.finder.segmenter
    if net is None:
        return None
    return lambda image: segment(net, scan.like(image), engine.device).volumes


def _write(
    scan: Volume,
    sampled: Sampled,
    seen: np.ndarray | None,
    label: str,
    paths: dict[str, Path],
    prepared: Prepared,
) -> None:
    data = sampled.mean
    description = f"{SYNTHETIC} {__version__} counterfactual {label}"
    write_like(scan, data, paths["image"], description=description)
    if "difference" in paths:
        difference = scan.like(data - scan.data)
        write_new(difference, paths["difference"], np.float32, description=description)
    if "sd" in paths:
        assert sampled.sd is not None
        said = f"{SYNTHETIC} {__version__} SD of samples {label}"
        write_new(scan.like(sampled.sd), paths["sd"], np.float32, description=said)
    if "reconstruction" in paths:
        assert seen is not None
        said = f"{SYNTHETIC} {__version__} reconstruction"
        write_like(scan, seen, paths["reconstruction"], description=said)
    if "picture" in paths:
        title = f"{scan.path.name if scan.path else 'scan'}: counterfactual {label} (synthetic)"
        counterfactual_picture(
            scan.data, data, scan.grid, prepared.native_mask, paths["picture"], title
        )


def _write_record(sidecar: dict[str, Any], path: Path) -> None:
    """The last file of a target: without it nothing counts as done."""
    text = json.dumps(sidecar, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def _regions(engine: Engine, scan: Volume) -> Regions:
    net = engine.finder.segmenter
    missing = "" if net else "the bundle has no segmenter"
    return Ruler(net, engine.device, engine.bundle.name, missing).measure(scan)


def _report(
    engine: Engine,
    scan: Volume,
    sampled: Sampled,
    seen: np.ndarray | None,
    sidecar: dict[str, Any],
    paths: dict[str, Path],
    regions: Regions,
) -> None:
    """The page of what was written: the image is read back, as a reader of it would."""
    made = read_volume(paths["image"])
    after = _regions(engine, made)
    reconstruction = None if seen is None else scan.like(seen)
    sd = None if sampled.sd is None else scan.like(sampled.sd)
    write_page(Run(scan, made, sidecar, regions, after, reconstruction, sd), paths["report"])


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
                "SHA256": file_sha256(scan.path),
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
