"""Counterfactuals of one scan or a cohort: names of outputs, rows that fail, manifests written."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cfgen.data.conditions import Intervention, number_text
from cfgen.data.manifest import unique_key, write_manifest
from cfgen.data.table import Row
from cfgen.data.volume import is_image_path, strip_suffix
from cfgen.errors import CfgenError, UsageError
from cfgen.jobs.counterfactual import Engine, Options, Result, counterfactual

log = logging.getLogger("cfgen")


@dataclass(frozen=True)
class Plan:
    """One scan and the file of each of its targets."""

    row: Row
    outputs: dict[Intervention, Path]


@dataclass(frozen=True)
class Outcome:
    """What was written, as manifest rows, and which rows failed and why."""

    done: list[Row] = field(default_factory=list)
    failed: list[Row] = field(default_factory=list)


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
    """Run the plans one after another, each as if it were alone.

    With `keep_going` a scan that fails is logged and collected; otherwise its error is raised.
    `source` says where the rows' conditions come from.
    """
    outcome = Outcome()
    for number, one in enumerate(plans, 1):
        try:
            results = counterfactual(
                engine,
                one.row.image,
                one.outputs,
                given=one.row.values,
                given_source=source,
                mask_path=one.row.mask or one.row.labels,
                options=options,
            )
        except CfgenError as error:
            if not keep_going:
                raise
            log.error("%s: %s", one.row.source, error)
            outcome.failed.append(
                replace(one.row, extra=one.row.extra | {"error": " ".join(str(error).split())})
            )
            continue
        for result in results:
            for warning in result.warnings:
                log.warning("%s: warning: %s", result.image.name, warning)
        outcome.done.extend(_row(one.row, result) for result in results)
        if keep_going:
            log.info("%d/%d %s", number, len(plans), one.row.subject)
    return outcome


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
