"""Write a simulated cohort: images with their truth, and the true counterfactual of every subject.

The folder is laid out like BIDS. Every file says that it is synthetic. All that can be refused is
refused before the first image is made.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cfgen import __version__
from cfgen.config import DEFAULT_GRID, SEED, TruthBy
from cfgen.data.acquisition import PARAMETERS
from cfgen.data.conditions import Intervention
from cfgen.data.manifest import write_manifest
from cfgen.data.table import Row, write_table
from cfgen.data.volume import Volume, refuse_existing, write_atomically, write_new
from cfgen.errors import CfgenError
from cfgen.progress import each, working
from cfgen.sim import cohort
from cfgen.sim.cohort import Preset, Subject
from cfgen.sim.graph import PLAIN, Stress, graph
from cfgen.sim.physics import reported
from cfgen.sim.reference import reference
from cfgen.sim.render import CHANNELS, Rendered, check_phantom, render, render_phantom

log = logging.getLogger("cfgen")


@dataclass(frozen=True)
class Plan:
    """What is to be made: subjects `start` to `stop` - 1 of a cohort, and which truths."""

    preset: Preset
    start: int
    stop: int
    truths: tuple[Intervention, ...] = ()
    seed: int = SEED
    grid: str = DEFAULT_GRID
    visits: int = 1
    confounding: float = 0.0
    stress: Stress = PLAIN
    truth_by: TruthBy = "anatomy"


@dataclass(frozen=True)
class Simulated:
    """Manifest rows of the cohort and of its counterfactuals; truths that no brain can have."""

    rows: list[Row] = field(default_factory=list)
    truths: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def plan_subjects(
    plan: Plan,
) -> tuple[list[Subject], list[tuple[Subject, Intervention]], list[str]]:
    """The subjects, their counterfactuals, and which of these were left out and why.

    A target outside the graph's ages, or whose volumes do not fit, is left out for that subject.
    Raises UsageError when an intervention is possible for nobody.
    """
    model = graph()
    subjects = cohort.sample(
        model,
        plan.preset,
        plan.seed,
        plan.start,
        plan.stop,
        plan.visits,
        plan.confounding,
        plan.stress,
    )
    truths: list[tuple[Subject, Intervention]] = []
    left_out: list[str] = []
    for intervention in plan.truths:
        last: CfgenError | None = None
        before = len(truths)
        for subject in subjects:
            try:
                changed = cohort.counterfactual(model, subject, intervention, plan.stress)
                if plan.truth_by == "partial-volumes":
                    check_phantom(subject, changed)
            except CfgenError as error:
                last = error
                left_out.append(f"{_name(subject, intervention)}: {error}")
                continue
            truths.append((changed, intervention))
        if last is not None and len(truths) == before:
            raise last
    return subjects, truths, left_out


def _name(subject: Subject, intervention: Intervention | None) -> str:
    parts = (subject.key, _session(subject), intervention.label() if intervention else "")
    return " ".join(p for p in parts if p)


def simulate(plan: Plan, out: Path, *, overwrite: bool = False) -> Simulated:
    """Make a cohort in a folder; `manifest.csv` and `truth.csv` name what is there.

    Raises UsageError before any image is made.
    """
    subjects, truths, left_out = plan_subjects(plan)
    refuse_existing(out / "manifest.csv", overwrite)
    for text in left_out:
        log.warning("left out: %s", text)
    with working("making the reference head"):
        head = reference(plan.grid)
    result = Simulated(left_out=left_out)
    tables: list[dict[str, str]] = []
    everybody = [*((s, None) for s in subjects), *truths]
    factual = {(s.number, s.visit): s for s in subjects}
    for subject, intervention in each(everybody, len(everybody), "images"):
        try:
            if intervention is not None and plan.truth_by == "partial-volumes":
                person = factual[subject.number, subject.visit]
                rendered = render_phantom(graph(), head, person, subject, plan.seed)
            else:
                rendered = render(graph(), head, subject, plan.seed)
        except CfgenError as error:
            # One person in thousands: the volumes fit the skull, but not this head's folds.
            result.left_out.append(f"{_name(subject, intervention)}: {error}")
            log.warning("left out: %s", result.left_out[-1])
            continue
        row = _write(subject, intervention, rendered, plan, out)
        (result.rows if intervention is None else result.truths).append(row)
        tables.append(_volumes_line(subject, intervention, rendered))
    write_manifest(out / "manifest.csv", result.rows)
    if result.truths:
        write_manifest(out / "truth.csv", result.truths)
    write_table(out / "volumes.csv", tables)
    observed = cohort.observed(graph(), subjects, plan.seed, plan.stress)
    write_table(
        out / "observed.csv",
        [
            {"subject": s.key, "session": _session(s)} | {n: f"{v:.4f}" for n, v in volumes.items()}
            for s, volumes in zip(subjects, observed, strict=True)
        ],
    )
    write_table(out / "participants.tsv", [_participant(s) for s in subjects if s.visit == 0])
    text = json.dumps(_description(plan), indent=2) + "\n"
    write_atomically(out / "dataset_description.json", lambda path: path.write_text(text))
    return result


def _session(subject: Subject) -> str:
    return f"ses-{subject.visit + 1}" if subject.visit else ""


def split_of(number: int) -> str:
    """Seven parts train, one val, two test, whatever the size of the cohort."""
    place = number * 7 % 10
    return "train" if place < 7 else "val" if place < 8 else "test"


def _write(
    subject: Subject, intervention: Intervention | None, rendered: Rendered, plan: Plan, out: Path
) -> Row:
    label = intervention.label() if intervention else ""
    folder = out / "truth" / label if intervention else out
    parts = [subject.key, *([_session(subject)] if subject.visit else [])]
    stem = "_".join(parts)
    anat = folder.joinpath(*parts, "anat")
    head = reference(plan.grid)
    description = f"SYNTHETIC: cfgen {__version__} simulate"
    image, labels, posteriors, sidecar = (
        anat / f"{stem}_{name}"
        for name in ("T1w.nii.gz", "dseg.nii.gz", "probseg.nii.gz", "T1w.json")
    )
    write_new(Volume(rendered.image, head.grid.affine), image, np.int16, description=description)
    write_new(Volume(rendered.labels, head.grid.affine), labels, np.int16, description=description)
    write_new(
        Volume(rendered.posteriors, head.grid.affine),
        posteriors,
        np.uint8,
        description=description,
        slope=1 / 255,
    )
    values = cohort.values_of(graph(), subject)
    record: dict[str, Any] = {
        "Synthetic": True,
        "Description": "Simulated MRI; no person was scanned",
        "GeneratedBy": [{"Name": "cfgen", "Version": __version__}],
        "Cohort": {"Preset": plan.preset.name, "Seed": plan.seed, "Subject": subject.number},
        "Intervention": label or None,
        **({"TruthBy": plan.truth_by} if intervention else {}),
        **reported(subject.acquisition),
        "SkullStripped": True,
        "PosteriorChannels": list(CHANNELS),
    }
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(sidecar, lambda path: path.write_text(text))
    extra = {"ad": _number(values["ad"]), "aud": _number(values["aud"])}
    extra |= {n: str(values[n]) for n in ("manufacturer", "field_tesla", "sequence")}
    extra |= {n: _number(values[n]) for n in PARAMETERS}
    extra["synthetic"] = "true"
    if intervention:
        factual = out.joinpath(*parts, "anat", f"{stem}_T1w.nii.gz")
        extra |= {"intervention": label, "factual_image": str(factual.absolute())}
    return Row(
        subject=subject.key,
        session="_".join(p for p in (_session(subject), label) if p),
        image=image,
        labels=labels,
        posteriors=posteriors,
        split=split_of(subject.number),
        values={"age": round(float(values["age"]), 4), "sex": values["sex"]},
        extra=extra,
    )


def _number(value: float | str) -> str:
    return f"{float(value):.4f}".rstrip("0").rstrip(".")


def _volumes_line(
    subject: Subject, intervention: Intervention | None, rendered: Rendered
) -> dict[str, str]:
    """Volumes in mL: of the graph, and as they are in the image ('_rendered')."""
    names = graph().regions
    line = {
        "subject": subject.key,
        "session": _session(subject),
        "intervention": intervention.label() if intervention else "",
        "tiv": f"{float(subject.volumes.tiv[0]):.4f}",
        "subarachnoid": f"{float(subject.volumes.subarachnoid[0]):.4f}",
        "fixed": f"{float(subject.volumes.fixed[0]):.4f}",
    }
    line |= {n: f"{v:.4f}" for n, v in zip(names, subject.volumes.regions[0], strict=True)}
    line |= {f"{n}_rendered": f"{v:.4f}" for n, v in zip(names, rendered.volumes_ml, strict=True)}
    return line | {"tiv_rendered": f"{rendered.tiv_ml:.4f}"}


def _participant(subject: Subject) -> dict[str, str]:
    """A line of participants.tsv."""
    parents = subject.parents
    return {
        "participant_id": subject.key,
        "age": _number(float(parents.age[0])),
        "sex": "M" if parents.male[0] else "F",
        "ad": _number(float(parents.ad[0])),
        "aud": _number(float(parents.aud[0])),
    }


def _description(plan: Plan) -> dict[str, Any]:
    return {
        "Name": f"cfgen simulated cohort '{plan.preset.name}'",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "cfgen", "Version": __version__}],
        "Synthetic": True,
        "Preset": plan.preset.about,
        "Seed": plan.seed,
        "Subjects": [plan.start, plan.stop],
        "Interventions": [i.label() for i in plan.truths],
        **({"TruthBy": plan.truth_by} if plan.truths else {}),
        "Template": "MNI152NLin2009aSym, (c) 1993-2009 Louis Collins, McConnell BIC",
    }
