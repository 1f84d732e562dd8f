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
from cfgen.causal.worlds import settable
from cfgen.data.conditions import Intervention, Values
from cfgen.data.record import SourceFile, this_software, write_record
from cfgen.data.volume import file_sha256, read_volume
from cfgen.device import number_type
from cfgen.edit.edits import (
    Drawing,
    Edits,
    Question,
    TissueEdits,
    edit_latents,
    region_records,
)
from cfgen.edit.engine import Engine, conditions_of
from cfgen.edit.filled import FilledEdits
from cfgen.edit.masked import edit_by_masks
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
from cfgen.edit.way import Way
from cfgen.errors import Notice
from cfgen.jobs.counterfactual_checks import checked_way
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
    way = checked_way(engine.bundle, outputs, options)
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
    run = _Run(engine, opened, factual, file_sha256(scan_path), way, options)
    targets = {i: i.apply(run.values) for i in outputs}
    edits = run.edits(list(targets.values()))
    if edits.round_trip is not None:
        steps, lost = options.sampler.steps, 100 * edits.round_trip
        log.info("inverted in %d steps, round trip %.3f %%", steps, lost)
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


@dataclass(frozen=True)
class _Run:
    """One scan, opened, and what is known of it."""

    engine: Engine
    opened: Opened
    factual: Factual
    digest: str
    way: Way
    options: Options

    @property
    def values(self) -> dict[str, float | str]:
        """Conditions and, where a causal model answers, volumes (mm3) of the scan."""
        regions = self.opened.brain.regions
        if not self.way.causal or regions is None:
            return dict(self.factual.values)
        volumes = volumes_by_structure(regions.result.volumes)
        return {**self.factual.values, **volumes}

    def edits(self, targets: Sequence[Values]) -> Edits:
        engine, options, way = self.engine, self.options, self.way
        drawing = Drawing(
            options.sampler, options.samples, options.seed, self.digest, options.decoder
        )
        if not way.causal:
            known = self.factual.values
            return edit_latents(engine, self.opened, known, targets, drawing, way.render)
        law = Law(engine.scm, options.rates, options.scale_head)
        question = Question(self.opened, law, self.values, targets)
        tissue = TissueEdits(question, options.samples, options.keep_noise)
        if not way.generates:
            return tissue
        if not way.moves:
            return edit_by_masks(engine, tissue, drawing, way.render)
        return FilledEdits(edit_by_masks(engine, tissue, drawing))

    def extrapolations(self, target: Values) -> list[Notice]:
        schema = self.engine.bundle.schema
        if self.way.causal:
            schema = conditions_of(settable(self.engine.scm.graph, schema))
        conditions = {n: v for n, v in target.items() if n in schema.names}
        return schema.extrapolations(self.factual.values, conditions)

    def with_units(self, values: Values, asked: Sequence[str]) -> dict[str, TargetValue]:
        """Conditions, and what else was asked for."""
        units = {v.name: v.unit for v in self.engine.bundle.schema.variables}
        names = [n for n in values if n in units or n in asked]
        return {n: TargetValue(values[n], units.get(n, "mm3")) for n in names}

    def provenance(self, edits: Edits, warnings: list[Notice]) -> Sidecar:
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
            render=self.way.render,
            sampler=self._sampler(),
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
            by=self.way.by,
            decoder=options.decoder if self.way.generates else None,
        )

    def _sampler(self) -> Sampler | None:
        if not self.way.generates:
            return None
        edit, models = self.options.sampler, self.engine.models
        return Sampler.of(edit, models.drift(edit.drift, edit.steps, edit.depth))

    def write(
        self,
        edits: Edits,
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
        rebuilt = edits.reconstruction if self.options.report or "reconstruction" in paths else None
        images = Images(opened, sampled, rebuilt)
        sidecar = write_images(images, sidecar, paths)
        after: Regions | None = None
        account = edits.account(number)
        if account is not None:
            written = read_volume(paths["image"])
            # A page shows regions, which takes labels too.
            after = engine.ruler.measure(written) if "report" in paths else None
            volumes = engine.ruler.soft(written) if after is None else after.volumes
            sidecar = replace(
                sidecar,
                regions=region_records(opened, account.changes, volumes),
                causal=account.causal,
                masks=account.masks,
            )
        if "field" in paths:
            assert isinstance(edits, TissueEdits | FilledEdits)
            edits.write_field(number, paths["field"], paths["jacobian"])
        sidecar = replace(sidecar, warnings=sidecar.warnings + edits.notices_of(number))
        if "report" in paths:
            write_report(engine, images, sidecar, paths, after)
        write_record(sidecar, paths["sidecar"])
        return sidecar
