"""Counterfactuals of one scan or a cohort: names of outputs, rows that fail, manifests written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cfgen.batch.resume import finished, stop_signal
from cfgen.data.conditions import Intervention, number_text
from cfgen.data.manifest import unique_key, write_manifest
from cfgen.data.table import Row
from cfgen.data.volume import is_image_path, strip_suffix
from cfgen.errors import CfgenError, UsageError
from cfgen.jobs.counterfactual import (
    Engine,
    Options,
    Result,
    counterfactual,
    output_files,
    request,
)
from cfgen.scan.factual import known_conditions

log = logging.getLogger("cfgen")


@dataclass(frozen=True)
class Plan:
    """One scan and the file of each of its targets."""

    row: Row
    outputs: dict[Intervention, Path]


@dataclass(frozen=True)
class Outcome:
    """What was written, as manifest rows, which rows failed and why, and which were not reached
    before a signal."""

    done: list[Row] = field(default_factory=list)
    failed: list[Row] = field(default_factory=list)
    left: list[Row] = field(default_factory=list)


def plan(
    rows: Sequence[Row], interventions: Sequence[Intervention], out: Path | None
) -> list[Plan]:
    """Name every output. `out` is an image file for one scan and target, else a folder.

    Raises UsageError when a file name is given for more than one output.
    """
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
    images = sorted(p for p in folder.iterdir() if p.is_file() and is_image_path(p))
    if not images:
        raise UsageError(folder, "holds no image", "files named *.nii, *.nii.gz or *.mgz")
    return [replace(single_row(p, None), source=p.name) for p in images]


def _suffix(image: Path) -> str:
    return image.name.removeprefix(strip_suffix(image))


def run(
    engine: Engine, plans: Sequence[Plan], options: Options, source: str, keep_going: bool
) -> Outcome:
    """Run the plans one after another, each as if it were alone. Raises CfgenError.

    `source` says where the rows' conditions come from. With `keep_going` a scan that fails is
    logged and collected, one that was made before by the same request is kept, and SIGTERM or
    SIGINT stop between two scans.
    """
    if not keep_going:
        return Outcome([row for one in plans for row in _make(engine, one, options, source)])
    with stop_signal() as stopped:
        return _run_all(engine, plans, options, source, stopped)


def _run_all(
    engine: Engine,
    plans: Sequence[Plan],
    options: Options,
    source: str,
    stopped: Callable[[], bool],
) -> Outcome:
    outcome = Outcome()
    for number, one in enumerate(plans, 1):
        if stopped():
            outcome.left.extend(p.row for p in plans[number - 1 :])
            break
        try:
            rows = [] if options.overwrite else _made_before(engine, one, options)
            said = "is there already" if rows else "done"
            outcome.done.extend(rows or _make(engine, one, options, source))
        except CfgenError as error:
            log.error("%s: %s", one.row.source, error)
            outcome.failed.append(
                replace(one.row, extra=one.row.extra | {"error": " ".join(str(error).split())})
            )
            continue
        log.info("%d/%d %s %s", number, len(plans), one.row.subject, said)
    return outcome


def _make(engine: Engine, one: Plan, options: Options, source: str) -> list[Row]:
    results = counterfactual(
        engine,
        one.row.image,
        one.outputs,
        given=one.row.values,
        given_source=source,
        mask_path=one.row.mask or one.row.labels,
        options=options,
    )
    for result in results:
        for warning in result.warnings:
            log.warning("%s: warning: %s", result.image.name, warning)
    return [_row(one.row, result) for result in results]


def _made_before(engine: Engine, one: Plan, options: Options) -> list[Row]:
    """The rows of a plan whose files are all there, from the same scan, bundle and options; none
    where one is missing or was made otherwise."""
    known = known_conditions(engine.bundle, one.row.image, one.row.values, "").values
    mask = one.row.mask or one.row.labels
    rows = []
    for intervention, image in one.outputs.items():
        files, label = output_files(image, options), intervention.label()
        said = finished(list(files.values()), files["sidecar"])
        # Scans are hashed only where there is something to compare with.
        if not said or said.get("Fingerprint") != request(
            engine, one.row.image, mask, known, label, options
        ):
            return []
        target = {name: entry["Value"] for name, entry in said["Target"].items()}
        rows.append(_row(one.row, Result(image, label, target, said["RoundTripError"])))
    return rows


def _row(row: Row, result: Result) -> Row:
    """The manifest row of a counterfactual: its target as conditions, its origin beside them."""
    origin = {
        "intervention": result.label,
        "factual_image": str(row.image.absolute()),
        "round_trip_error": number_text(round(result.round_trip, 6)),
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


def write_outcome(outcome: Outcome, folder: Path) -> list[Path]:
    """manifest.csv of what was done and, where rows failed, failed.csv: a manifest again."""
    written = []
    for name, rows in (("manifest.csv", outcome.done), ("failed.csv", outcome.failed)):
        path = folder / name
        if rows:
            write_manifest(path, rows)
            written.append(path)
        elif name == "failed.csv":
            path.unlink(missing_ok=True)
    return written
