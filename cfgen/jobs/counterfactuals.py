"""Counterfactuals of one scan or a cohort: names of outputs, rows that fail, manifests written."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cfgen.batch.lists import write_lists
from cfgen.batch.resume import digests, finished
from cfgen.batch.rows import Made, Outcome, failed_row, reason, run_rows
from cfgen.bundle import Bundle
from cfgen.data.conditions import Intervention, number_text
from cfgen.data.manifest import unique_key
from cfgen.data.names import check_outputs
from cfgen.data.table import Row
from cfgen.data.volume import header_notices, is_image_path, refuse_existing, strip_suffix
from cfgen.edit.engine import Engine, variables_of
from cfgen.edit.sidecar import Sidecar
from cfgen.edit.way import Way
from cfgen.errors import CfgenError, Notice, UsageError
from cfgen.jobs.counterfactual import Result, counterfactual
from cfgen.jobs.counterfactual_checks import checked_way
from cfgen.jobs.counterfactual_files import Options, output_files, request
from cfgen.scan.factual import check_targets, known_conditions

log = logging.getLogger("cfgen")


@dataclass(frozen=True)
class Plan:
    """One scan and the file of each of its targets."""

    row: Row
    outputs: dict[Intervention, Path]


def plan(
    rows: Sequence[Row], interventions: Sequence[Intervention], out: Path | None
) -> list[Plan]:
    """Name every output. `out` is an image file for one scan and target, else a folder.

    Raises UsageError when a file name is given for more than one output, when two outputs would
    share a name, or when no file system takes it; ImageError for a folder that cannot be written.
    """
    plans = _named(rows, interventions, out)
    paths = [path for scan_plan in plans for path in scan_plan.outputs.values()]
    # The longest of the endings that a target's files have.
    check_outputs(p.with_name(f"{strip_suffix(p)}_jacobian.nii.gz") for p in paths)
    stems = Counter(p.with_name(strip_suffix(p).lower()) for p in paths)
    double = [p for p in paths if stems[p.with_name(strip_suffix(p).lower())] > 1]
    if double:
        raise UsageError(
            double[0],
            "two outputs would have this name, or names that a file system may take for one",
            fix="ask for fewer targets, or name the subjects apart",
        )
    return plans


def _named(
    rows: Sequence[Row], interventions: Sequence[Intervention], out: Path | None
) -> list[Plan]:
    single = len(rows) == 1 and len(interventions) == 1
    if out is not None and is_image_path(out):
        if not single:
            raise UsageError(
                "--out",
                f"'{out}' is one file for {len(rows) * len(interventions)} outputs",
                "a folder",
            )
        return [Plan(rows[0], {interventions[0]: out})]
    if out is not None and out.is_file():
        raise UsageError("--out", f"'{out}' is a file but no image name", "a folder or .nii.gz")
    folder = out or Path()
    return [
        Plan(
            row,
            {
                i: folder / f"{unique_key(row)}_{i.label()}{_suffix(row.image)}"
                for i in interventions
            },
        )
        for row in rows
    ]


def single_row(image: Path, mask: Path | None) -> Row:
    """One scan without a manifest; it is named by its file."""
    return Row(subject=strip_suffix(image), image=image, mask=mask)


def folder_rows(folder: Path) -> list[Row]:
    """The scans of a folder, by name. Raises UsageError when it holds none."""
    images = sorted(p for p in folder.iterdir() if not p.is_dir() and is_image_path(p))
    if not images:
        raise UsageError(folder, "holds no image", "files named *.nii, *.nii.gz or *.mgz")
    return [replace(single_row(p, None), source=p.name) for p in images]


def _suffix(image: Path) -> str:
    return image.name.removeprefix(strip_suffix(image))


def check_plans(bundle: Bundle, plans: Sequence[Plan], options: Options) -> list[Row]:
    """What can be told to fail before anything is computed: the rows, each with its error.

    Scans, headers and masks are opened, conditions and targets worked out, outputs looked for.
    What the model never saw the like of is logged. Raises UsageError for options that do not go
    together.
    """
    schema, _ = variables_of(bundle, _check_options(bundle, plans, options))
    failed = []
    for scan_plan in plans:
        row = scan_plan.row
        try:
            for image in filter(None, (row.image, row.mask or row.labels)):
                for notice in header_notices(image):
                    log.warning("%s: warning: %s", image.name, notice.text)
            known = known_conditions(bundle, row.image, row.values, row.source or "--from")
            check_targets(list(scan_plan.outputs), known, bundle)
            strange: dict[Path, list[Notice]] = {}
            for intervention, image in scan_plan.outputs.items():
                if not bundle.schema.missing(known.values):
                    target = intervention.only(known.values).apply(known.values)
                    strange[image] = schema.extrapolations(known.values, target)
                for path in output_files(image, options).values():
                    refuse_existing(path, options.overwrite)
            _warn(row.image, strange)
        except CfgenError as error:
            failed.append(failed_row(row, reason(error)))
    return failed


def _check_options(bundle: Bundle, plans: Sequence[Plan], options: Options) -> Way:
    return checked_way(bundle, {i for scan_plan in plans for i in scan_plan.outputs}, options)


def run(
    engine: Engine, plans: Sequence[Plan], options: Options, source: str, keep_going: bool
) -> Outcome[list[Row]]:
    """Run the plans one after another, each as if it were alone. Raises CfgenError.

    `source` says where the rows' conditions come from, where a row does not say it. With
    `keep_going` a scan that fails is logged and collected, one that was made before by the same
    request is kept, and SIGTERM or SIGINT stop between two scans. Raises UsageError
    for options that do not go together, before the first scan.
    """
    _check_options(engine.bundle, plans, options)
    keep_finished = keep_going and not options.overwrite

    def work(scan_plan: Plan) -> Made[list[Row]]:
        rows = _made_before(engine, scan_plan, options) if keep_finished else []
        if rows:
            return Made(rows, "is there already")
        return Made(_make(engine, scan_plan, options, source), "done")

    return run_rows(
        plans,
        lambda scan_plan: scan_plan.row,
        work,
        lambda _, result: result,
        keep_going=keep_going,
    )


def _make(engine: Engine, scan_plan: Plan, options: Options, source: str) -> list[Row]:
    results = counterfactual(
        engine,
        scan_plan.row.image,
        scan_plan.outputs,
        given=scan_plan.row.values,
        given_source=scan_plan.row.source or source,
        mask_path=scan_plan.row.mask or scan_plan.row.labels,
        options=options,
    )
    _warn(scan_plan.row.image, {result.image: result.notices for result in results})
    return [_row(scan_plan.row, result) for result in results]


def _warn(scan: Path, notices: Mapping[Path, Sequence[Notice]]) -> None:
    """What is said of every target is said once, of the scan."""
    lists = list(notices.values())
    shared = [n for n in lists[0] if all(n in others for others in lists)] if lists else []
    for image, own in {scan: shared, **notices}.items():
        for notice in own:
            if image == scan or notice not in shared:
                log.warning("%s: warning: %s", image.name, notice.text)


def _made_before(engine: Engine, scan_plan: Plan, options: Options) -> list[Row]:
    """The rows of a plan whose files are all there, from the same scan, bundle and options; none
    where one is missing or was made otherwise."""
    sidecars = {}
    for intervention, image in scan_plan.outputs.items():
        files = output_files(image, options)
        sidecar = finished(list(files.values()), files["sidecar"], Sidecar)
        if sidecar is None:
            return []
        sidecars[intervention] = sidecar
    # Scans are hashed only where there is something to compare with.
    known = known_conditions(engine.bundle, scan_plan.row.image, scan_plan.row.values, "").values
    hashes = digests(scan_plan.row.image, scan_plan.row.mask or scan_plan.row.labels)
    rows = []
    for intervention, sidecar in sidecars.items():
        label = intervention.label()
        if sidecar.fingerprint != request(engine, hashes, known, label, options):
            return []
        target = {name: entry.value for name, entry in sidecar.target.items()}
        result = Result(scan_plan.outputs[intervention], label, target, sidecar.round_trip_error)
        rows.append(_row(scan_plan.row, result))
    return rows


def _row(row: Row, result: Result) -> Row:
    """The manifest row of a counterfactual: its target as conditions, its origin beside them."""
    origin = {
        "intervention": result.label,
        "factual_image": str(row.image.absolute()),
        "round_trip_error": (
            "" if result.round_trip is None else number_text(round(result.round_trip, 6))
        ),
        "synthetic": "true",
    }
    session = "_".join(part for part in (row.session, result.label) if part)
    return Row(
        subject=row.subject,
        session=session,
        image=result.image,
        split=row.split,
        values=result.target,
        extra=origin,
    )


def write_outcome(outcome: Outcome[list[Row]], plans: Sequence[Plan], folder: Path) -> list[Path]:
    """manifest.csv of what is in the folder and, where rows failed, failed.csv."""
    done = [row for rows in outcome.done for row in rows]
    return write_lists(folder, done, outcome.failed, [scan_plan.row for scan_plan in plans])
