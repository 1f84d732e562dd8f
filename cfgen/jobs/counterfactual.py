"""The main job: what would this brain look like under other conditions?"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from cfgen import __version__
from cfgen.batch.resume import digests, fingerprint
from cfgen.config import EDIT, RENDER, SEED, Edit, Render
from cfgen.data.conditions import Intervention, Values
from cfgen.data.record import Source, this_software, write_record
from cfgen.data.volume import (
    SYNTHETIC,
    file_sha256,
    is_synthetic,
    read_volume,
    refuse_existing,
    strip_suffix,
    write_like,
    write_new,
)
from cfgen.device import number_type
from cfgen.edit.engine import Drawing, Edited, Engine, edit_scan, images, measure, regions
from cfgen.edit.latent import ROUND_TRIP_LIMIT
from cfgen.edit.samples import Sampled, summarise
from cfgen.edit.samples import record as samples_record
from cfgen.edit.sidecar import (
    BundleName,
    FactualValue,
    Sampler,
    Sidecar,
    TargetValue,
    library_versions,
)
from cfgen.errors import Notice, UsageError
from cfgen.measure.ruler import Regions
from cfgen.progress import working
from cfgen.report.page import Run, write_page
from cfgen.scan.brain import SkullStripping
from cfgen.scan.factual import Factual, check_targets, complete, known_conditions, value_text
from cfgen.scan.gate import Gate, GateRecord
from cfgen.scan.open import Opened, open_scan
from cfgen.scan.pictures import counterfactual_picture
from cfgen.scan.render import render

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
class Result:
    """The files of one target and what was said about it."""

    image: Path
    label: str
    target: dict[str, float | str]
    round_trip: float
    notices: list[Notice] = field(default_factory=list)


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
    known = known_conditions(engine.bundle, scan_path, given or {}, given_source)
    check_targets(list(outputs), known, engine.bundle)
    gate = Gate(engine.bundle.card, options.force)
    opened = open_scan(scan_path, mask_path, engine.finder, engine.bundle.preprocess, gate)
    factual, predicted = complete(engine.bundle, opened.prepared.image, engine.device, known)
    for name, value in factual.values.items():
        log.info("factual %s %s: %s", name, value_text(value), factual.sources[name])
    targets = {i: i.apply(factual.values) for i in outputs}
    digest = file_sha256(scan_path)
    drawing = Drawing(options.edit, options.samples, options.seed, digest)
    edited = edit_scan(engine, opened, factual.values, list(targets.values()), drawing)
    log.info(
        "inverted in %d steps, round trip %.3f %%", drawing.edit.steps, 100 * edited.round_trip
    )
    notices = opened.notices + predicted + _of_round_trip(edited)
    provenance = _provenance(engine, opened, factual, edited, digest, options)
    before = regions(engine, opened) if options.report else None
    rebuilt = _reconstruction(opened, edited) if options.report or options.reconstruction else None
    results: list[Result] = []
    written: list[Path] = []
    try:
        with working("writing", len(targets)) as step:
            for number, (intervention, target) in enumerate(targets.items()):
                label, paths = intervention.label(), files[intervention]
                warnings = [*notices, *engine.bundle.schema.extrapolations(factual.values, target)]
                scans: Iterable[np.ndarray] = images(engine, opened, edited, number, options.render)
                if intervention.is_null(factual.values):
                    scans = itertools.repeat(opened.volume.data, options.samples)
                volumes = measure(engine, opened) if options.samples > 1 else None
                sampled = summarise(scans, volumes)
                sidecar = replace(
                    provenance,
                    intervention=label,
                    target=_with_units(engine, target),
                    warnings=warnings,
                    fingerprint=request(
                        engine, [digest, *digests(mask_path)], known.values, label, options
                    ),
                    samples=(
                        samples_record(sampled, options.samples, paths["sd"].name)
                        if "sd" in paths
                        else None
                    ),
                    reconstruction=(
                        paths["reconstruction"].name if "reconstruction" in paths else None
                    ),
                )
                # A run that is killed now must not leave an old record beside a new image.
                paths["sidecar"].unlink(missing_ok=True)
                written += list(paths.values())
                _write(opened, sampled, rebuilt, sidecar, paths)
                if before is not None:
                    _report(engine, opened, sampled, rebuilt, sidecar, paths, before)
                write_record(sidecar, paths["sidecar"])
                log.info("%s written", label)
                results.append(Result(paths["image"], label, target, edited.round_trip, warnings))
                step()
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return results


def request(
    engine: Engine, hashes: Sequence[str], known: Values, label: str, options: Options
) -> str:
    """The fingerprint of one target: all that decides its image, before anything is computed;
    `hashes` are SHA-256 of the scan and of its mask, if there is one."""
    recipe = [engine.bundle.identity, engine.finder.how, options.render, asdict(options.edit)]
    return fingerprint(hashes, [*recipe, options.seed, options.samples, dict(known), label])


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


def _of_round_trip(edited: Edited) -> list[Notice]:
    if edited.round_trip <= ROUND_TRIP_LIMIT:
        return []
    text = (
        f"the round trip lost {edited.round_trip:.1%} of the latent "
        f"(expected at most {ROUND_TRIP_LIMIT:.0%}); more --steps bring it down"
    )
    return [Notice("round-trip", text)]


def _with_units(engine: Engine, values: Values) -> dict[str, TargetValue]:
    units = {v.name: v.unit for v in engine.bundle.schema.variables}
    return {n: TargetValue(v, units[n]) for n, v in values.items()}


def _provenance(
    engine: Engine,
    opened: Opened,
    factual: Factual,
    edited: Edited,
    digest: str,
    options: Options,
) -> Sidecar:
    """What the sidecars of all targets have in common."""
    path = opened.volume.path
    assert path is not None
    return Sidecar(
        synthetic=True,
        description="Counterfactual MRI made by a model; research use, not for diagnosis",
        generated_by=this_software(),
        sources=[Source(path.name, digest)],
        bundle=BundleName.of(engine.bundle),
        intervention="",
        factual={
            n: FactualValue(v.value, v.unit, factual.sources[n], n in factual.predicted or None)
            for n, v in _with_units(engine, factual.values).items()
        },
        target={},
        round_trip_error=round(edited.round_trip, 6),
        render=options.render,
        sampler=Sampler.of(options.edit),
        seed=options.seed,
        skull_stripping=SkullStripping(opened.brain.source, opened.brain.note),
        preprocessing={
            **asdict(engine.bundle.preprocess),
            "IntensityScale": opened.prepared.scale,
            "TemplateToScan": opened.prepared.to_native.round(6).tolist(),
        },
        gate=GateRecord.of(opened.findings),
        versions=library_versions(),
        device=str(engine.device),
        number_type=number_type(engine.device),
        threads=torch.get_num_threads(),
    )


def _reconstruction(opened: Opened, edited: Edited) -> np.ndarray:
    """What the model sees of the scan, on the scan's grid."""
    rebuilt = edited.rebuilt[0]
    return render(opened.volume, opened.prepared, rebuilt, rebuilt, "latent")


def _write(
    opened: Opened,
    sampled: Sampled,
    rebuilt: np.ndarray | None,
    sidecar: Sidecar,
    paths: dict[str, Path],
) -> None:
    """Every image and the picture of one target."""
    scan, data, label = opened.volume, sampled.mean, sidecar.intervention
    origin = f"{SYNTHETIC} {__version__}"
    description = f"{origin} counterfactual {label}"
    write_like(scan, data, paths["image"], description=description)
    if "difference" in paths:
        difference = scan.like(data - scan.data)
        write_new(difference, paths["difference"], np.float32, description=description)
    if sampled.sd is not None and "sd" in paths:
        sd = scan.like(sampled.sd)
        write_new(sd, paths["sd"], np.float32, description=f"{origin} SD of samples {label}")
    if rebuilt is not None and "reconstruction" in paths:
        path = paths["reconstruction"]
        write_like(scan, rebuilt, path, description=f"{origin} reconstruction")
    if "picture" in paths:
        title = f"{sidecar.sources[0].file}: counterfactual {label} (synthetic)"
        mask = opened.prepared.native_mask
        counterfactual_picture(scan.data, data, scan.grid, mask, paths["picture"], title)


def _report(
    engine: Engine,
    opened: Opened,
    sampled: Sampled,
    rebuilt: np.ndarray | None,
    sidecar: Sidecar,
    paths: dict[str, Path],
    regions: Regions,
) -> None:
    """The page of what was written: the image is read back, as a reader of it would."""
    scan, edited = opened.volume, read_volume(paths["image"])
    after = engine.ruler.measure(edited)
    sd = None if sampled.sd is None else scan.like(sampled.sd)
    reconstruction = None if rebuilt is None else scan.like(rebuilt)
    write_page(Run(scan, edited, sidecar, regions, after, reconstruction, sd), paths["report"])
