"""The main job: what would this brain look like under other conditions?"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from cfgen.batch.resume import digests
from cfgen.bundle import Bundle
from cfgen.causal.scm import load_scm
from cfgen.causal.worlds import settable
from cfgen.config import EDIT, Render
from cfgen.data.conditions import Intervention, Values
from cfgen.data.record import SourceFile, this_software, write_record
from cfgen.data.volume import file_sha256, read_volume
from cfgen.device import number_type
from cfgen.edit.edits import (
    Drawing,
    LatentEdits,
    TissueEdits,
    causal_record,
    check_law,
    edit_latents,
    region_records,
)
from cfgen.edit.engine import Engine, conditions_of, render_of
from cfgen.edit.samples import summarise
from cfgen.edit.sidecar import (
    BundleName,
    FactualValue,
    Sampler,
    Sidecar,
    TargetValue,
    library_versions,
)
from cfgen.edit.volumes import Law, volumes_by_structure
from cfgen.errors import Notice, UsageError
from cfgen.jobs.counterfactual_files import (
    Images,
    Options,
    clear_leftovers,
    output_files,
    refuse_outputs,
    request,
    write_images,
    write_report,
)
from cfgen.measure.ruler import Regions
from cfgen.progress import working
from cfgen.scan.brain import SkullStripping
from cfgen.scan.factual import Factual, check_targets, complete, known_conditions, value_text
from cfgen.scan.gate import Gate, GateRecord
from cfgen.scan.open import Opened, open_scan

log = logging.getLogger("cfgen")


@dataclass(frozen=True)
class Result:
    """The files of one target and what was said about it; `round_trip` is of a latent edit."""

    image: Path
    label: str
    target: dict[str, float | str]
    round_trip: float | None
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
    looked for beside the scan (BIDS) and then predicted. What is found out of the scan is shared
    by all targets. Either every file appears or none. Raises CfgenError.
    """
    how = checked_render(engine.bundle, outputs, options)
    files = {i: output_files(path, options) for i, path in outputs.items()}
    for group in files.values():
        clear_leftovers(group)
    refuse_outputs([f for group in files.values() for f in group.values()], options.overwrite)
    known = known_conditions(engine.bundle, scan_path, given or {}, given_source)
    check_targets(list(outputs), known, engine.bundle)
    gate = Gate(engine.bundle.card, options.force)
    opened = open_scan(scan_path, mask_path, engine.finder, engine.bundle.preprocess, gate)
    factual, predicted = complete(engine.bundle, opened.prepared.image, engine.device, known)
    for name, value in factual.values.items():
        log.info("factual %s %s: %s", name, value_text(value), factual.sources[name])
    run = _Run(engine, opened, factual, file_sha256(scan_path), how, options)
    targets = {i: i.apply(run.values) for i in outputs}
    edits = run.edits(list(targets.values()))
    shared = run.provenance(edits, opened.notices + predicted + edits.notices)
    hashes = [run.digest, *digests(mask_path)]
    results: list[Result] = []
    written: list[Path] = []
    try:
        with working("writing", len(targets)) as step:
            for number, (intervention, target) in enumerate(targets.items()):
                paths, label = files[intervention], intervention.label()
                sidecar = replace(
                    shared,
                    intervention=label,
                    target=run.with_units(target, [c.name for c in intervention.changes]),
                    warnings=shared.warnings + run.extrapolations(target),
                    fingerprint=request(engine, hashes, known.values, label, options),
                )
                # A run that is killed now must not leave an old record beside a new image.
                paths["sidecar"].unlink(missing_ok=True)
                written += list(paths.values())
                null = intervention.is_null(run.values)
                sidecar = run.write(edits, number, sidecar, paths, null=null)
                log.info("%s written", label)
                aim = {n: entry.value for n, entry in sidecar.target.items()}
                result = Result(paths["image"], label, aim, edits.round_trip, sidecar.warnings)
                results.append(result)
                step()
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return results


def checked_render(
    bundle: Bundle, interventions: Iterable[Intervention], options: Options
) -> Render:
    """How the edits reach the scan. Raises UsageError for what this render does not have, and
    BundleError for a part that the bundle lacks."""
    if options.samples < 1:
        raise UsageError("--samples", f"{options.samples}", "1 or more")
    how = render_of(bundle, options.render)
    if how == "tissue":
        for name, asked in {
            "--reconstruction": options.reconstruction,
            sampler_options(options): options.edit is not None,
        }.items():
            if asked:
                raise UsageError(
                    name,
                    "with --render tissue, where no model makes the image",
                    "--render residual, warp or latent",
                )
        if options.field and options.scale_head:
            raise UsageError("--field", "beside --scale-head", "one of them")
        if options.samples > 1:
            check_law(load_scm(bundle), options.samples)
        return how
    regions = {c.name for i in interventions for c in i.changes} - set(bundle.schema.names)
    for name, asked in {
        "--field": options.field,
        "--scale-head": options.scale_head,
        "--move-noise": not options.keep_noise,
        "--rates": options.rates != "cohort",
        f"--set {', '.join(sorted(regions))}": bool(regions),
    }.items():
        if asked:
            raise UsageError(name, f"not with --render {how}", "--render tissue")
    return how


def sampler_options(options: Options) -> str:
    """Which of them say something new; all where what they say is what it is anyway."""
    names = ("steps", "depth", "guidance", "drift")
    new = [n for n in names if getattr(options.sampler, n) != getattr(EDIT, n)]
    return ", ".join(f"--{name}" for name in new or names)


@dataclass(frozen=True)
class _Run:
    """One scan, opened, and what is known of it."""

    engine: Engine
    opened: Opened
    factual: Factual
    digest: str
    how: Render
    options: Options

    @property
    def values(self) -> dict[str, float | str]:
        """Conditions and, for moved tissue, volumes (mm3) of the scan."""
        regions = self.opened.brain.regions
        if self.how != "tissue" or regions is None:
            return dict(self.factual.values)
        volumes = volumes_by_structure(regions.result.volumes)
        return {**self.factual.values, **volumes}

    def edits(self, targets: Sequence[Values]) -> TissueEdits | LatentEdits:
        options = self.options
        if self.how == "tissue":
            law = Law(self.engine.scm, options.rates, options.scale_head)
            return TissueEdits(
                self.opened, law, self.values, targets, options.samples, options.keep_noise
            )
        drawing = Drawing(options.sampler, options.samples, options.seed, self.digest)
        edits = edit_latents(
            self.engine, self.opened, self.factual.values, targets, drawing, self.how
        )
        steps, lost = drawing.edit.steps, 100 * edits.round_trip
        log.info("inverted in %d steps, round trip %.3f %%", steps, lost)
        return edits

    def extrapolations(self, target: Values) -> list[Notice]:
        schema = self.engine.bundle.schema
        if self.how == "tissue":
            schema = conditions_of(settable(self.engine.scm.graph, schema))
        conditions = {n: v for n, v in target.items() if n in schema.names}
        return schema.extrapolations(self.factual.values, conditions)

    def with_units(self, values: Values, asked: Sequence[str]) -> dict[str, TargetValue]:
        """Conditions, and what else was asked for."""
        units = {v.name: v.unit for v in self.engine.bundle.schema.variables}
        names = [n for n in values if n in units or n in asked]
        return {n: TargetValue(values[n], units.get(n, "mm3")) for n in names}

    def provenance(self, edits: TissueEdits | LatentEdits, warnings: list[Notice]) -> Sidecar:
        """What the sidecars of all targets have in common."""
        opened, options, bundle = self.opened, self.options, self.engine.bundle
        path = opened.volume.path
        assert path is not None
        round_trip = edits.round_trip
        return Sidecar(
            synthetic=True,
            description="Counterfactual MRI made by a model; research use, not for diagnosis",
            generated_by=this_software(),
            sources=[SourceFile(path.name, self.digest)],
            bundle=BundleName.of(bundle),
            intervention="",
            factual={
                n: FactualValue(
                    v.value, v.unit, self.factual.sources[n], n in self.factual.predicted or None
                )
                for n, v in self.with_units(self.factual.values, []).items()
            },
            target={},
            round_trip_error=None if round_trip is None else round(round_trip, 6),
            render=self.how,
            sampler=self._sampler(edits),
            seed=options.seed,
            skull_stripping=SkullStripping(opened.brain.source, opened.brain.note),
            preprocessing={
                **asdict(bundle.preprocess),
                "IntensityScale": opened.prepared.scale,
                "TemplateToScan": opened.prepared.to_native.round(6).tolist(),
            },
            gate=GateRecord.of(opened.findings),
            versions=library_versions(),
            device=str(self.engine.device),
            number_type=number_type(self.engine.device),
            threads=torch.get_num_threads(),
            warnings=warnings,
        )

    def _sampler(self, edits: TissueEdits | LatentEdits) -> Sampler | None:
        if isinstance(edits, TissueEdits):
            return None
        edit, models = self.options.sampler, self.engine.models
        return Sampler.of(edit, models.drift(edit.drift, edit.steps, edit.depth).delta)

    def write(
        self,
        edits: TissueEdits | LatentEdits,
        number: int,
        sidecar: Sidecar,
        paths: dict[str, Path],
        *,
        null: bool,
    ) -> Sidecar:
        """Every file of target `number`, the sidecar last; `null` leaves the scan as it is."""
        opened, engine, samples = self.opened, self.engine, self.options.samples
        scans: Iterable[np.ndarray] = edits.images(number)
        if null:
            scans = itertools.repeat(opened.volume.data, samples)
        sampled = summarise(scans, engine.measure(opened) if samples > 1 else None)
        rebuilt = None
        if isinstance(edits, LatentEdits) and (self.options.report or "reconstruction" in paths):
            rebuilt = edits.reconstruction
        images = Images(opened, sampled, rebuilt)
        sidecar = write_images(images, sidecar, paths)
        after: Regions | None = None
        if isinstance(edits, TissueEdits):
            written = read_volume(paths["image"])
            # A page shows regions, which takes labels too.
            after = engine.ruler.measure(written) if "report" in paths else None
            volumes = engine.ruler.soft(written) if after is None else after.volumes
            sidecar = replace(
                sidecar,
                regions=region_records(edits, number, volumes),
                causal=causal_record(edits, number),
                warnings=sidecar.warnings + edits.notices_of(number),
            )
            if "field" in paths:
                edits.write_field(number, paths["field"], paths["jacobian"])
        if "report" in paths:
            write_report(engine, images, sidecar, paths, after)
        write_record(sidecar, paths["sidecar"])
        return sidecar
