"""What benchmarks/aud.py prints and draws: cells of Table 3, slopes, power, pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from aud_people import (
    FOLDS,
    LOBES,
    PEOPLE,
    PICTURED,
    Person,
    conditions_of,
    everybody,
    law_of,
    laws,
    other_group,
    read_facts,
    true_volumes,
)
from decoders import draw as draw_planes

from cfgen.config import SEED
from cfgen.data.volume import write_atomically
from cfgen.edit.volumes import Law, world
from cfgen.metrics.aud import COMPARISONS, UNCHANGED, Cohort, Finding, correct, replicate
from cfgen.metrics.statistics import ratio_over_people

FIVE = tuple(name for name in LOBES if name != f"cortex_{UNCHANGED}")
# What is no part of the supratentorial volume, or a sum of others.
NOT_ABOVE = {"csf", "brainstem", "cerebellum_gm", "cerebellum_wm", "fourth_ventricle"}
SUMS = {"cortex", "brain", "tiv"}
REPLICATIONS = 50


# Of each person what a way made of him: volumes, and ln changes that were asked for.
Made = dict[int, tuple[dict[str, float], dict[str, float]]]


def made_by(out: Path, people: Sequence[Person]) -> dict[str, Made]:
    """Every way that is there."""
    found: dict[str, Made] = {"copy": {}, "oracle": {}, "asked": {}}
    for folder in sorted(p for p in (out / "edits").glob("*") if p.is_dir()):
        made: Made = {}
        for path in sorted(folder.glob("*.json")):
            line = json.loads(path.read_text())
            if "made" in line:
                made[int(path.stem)] = line["made"], line["asked"]
        found[folder.name] = made
    fitted = laws(out, "true")
    for p in people:
        true = {n: float(np.log(p.true[1][n] / p.true[0][n])) for n in LOBES}
        here = {**p.measured, **p.conditions}
        there = {**here, "aud": 0.0 if p.ill else 1.0}
        asked = world(Law(fitted[p.number % FOLDS], "cohort"), here, there).changes
        found["copy"][p.number] = p.measured, true
        found["oracle"][p.number] = p.oracle, true
        whole = {n: v * float(np.exp(asked.get(n, 0.0))) for n, v in p.measured.items()}
        found["asked"][p.number] = whole, asked
    return found


@dataclass(frozen=True)
class Adjusted:
    """What is taken out of volumes: head size, as the volume inside the skull, or, as in the paper,
    the supratentorial volume of the scan, which follows the disorder itself; age and sex too."""

    size: str
    age_and_sex: bool

    @property
    def text(self) -> str:
        return f"adjusted for {self.size} volume" + (", age and sex" if self.age_and_sex else "")

    @property
    def file(self) -> str:
        return f"table-{self.size}" + ("-age-sex" if self.age_and_sex else "") + ".md"


ADJUSTED = [
    Adjusted(size, both) for size in ("intracranial", "supratentorial") for both in (True, False)
]


def head_size(volumes: Mapping[str, float], size: str) -> float:
    if size == "intracranial":
        return volumes["tiv"]
    return sum(v for n, v in volumes.items() if n not in NOT_ABOVE | SUMS)


def cohort_of(people: Sequence[Person], made: Made, how: Adjusted) -> Cohort:
    """Those who have been made."""
    some = [p for p in people if p.number in made]
    covariates = np.array(
        [[float(p.conditions["age"]), float(p.conditions["sex"] == "M")] for p in some]
    )
    return Cohort(
        [str(p.number) for p in some],
        np.array([p.ill for p in some]),
        np.array([head_size(p.measured, how.size) for p in some]),
        np.array([[p.measured[n] for n in LOBES] for p in some]),
        np.array([[made[p.number][0][n] for n in LOBES] for p in some]),
        covariates if how.age_and_sex else np.zeros((len(some), 0)),
    )


def real_difference(people: Sequence[Person], how: Adjusted) -> list[Finding]:
    """Controls against patients as they are: what a study sees."""
    itself: Made = {p.number: (p.measured, {}) for p in people}
    findings = replicate(cohort_of(people, itself, how))
    return [f for f in findings if f.comparison.startswith("control vs counterfactual control")]


def table(out: Path, how: Adjusted, *, shared: bool = False) -> str:
    """Of everybody, or of those whom every way has made, who are `shared`."""
    people = read_facts(out)
    ways = made_by(out, people)
    if shared:
        people = [p for p in people if all(p.number in made for made in ways.values())]
        some = {p.number for p in people}
        ways = {way: {n: made[n] for n in some} for way, made in ways.items()}
    controls = sum(not p.ill for p in people)
    real = _cells(real_difference(people, how))
    text = [
        f"{len(people)} people, {controls} controls; {how.text}",
        "",
        f"people who are real, controls against patients: {real}",
    ]
    lines, rows = [], []
    for way, made in ways.items():
        if len(made) < 20:
            continue
        findings = replicate(cohort_of(people, made, how))
        right = correct(findings)
        counts = " / ".join(str(right[name]) for name in COMPARISONS)
        equal = [f for f in findings if not f.should_differ and f.region != UNCHANGED]
        equivalent = sum(f.equivalence_p < 0.05 for f in equal)
        paired = [f for f in findings if np.isfinite(f.paired_p)]
        paired_right = sum((f.paired_p < 0.05 / 6) == f.should_differ for f in paired)
        rows.append(
            f"| {way} | {len(made)} | {sum(right.values())} of 30 | {counts} | {equivalent} of "
            f"{len(equal)} | {paired_right} of {len(paired)} | {' | '.join(slopes(people, made))} |"
        )
        lines += [f"\n{way}:\n"]
        for name in COMPARISONS:
            some = [f for f in findings if f.comparison == name]
            lines.append(f"- {name}: {_cells(some)}")
    names = " | ".join(name.removeprefix("cortex_") for name in FIVE)
    text += [
        "",
        "| | people | right | by comparison | equivalent | paired right | "
        f"{names} | occipital over effect |",
        "|---" * (7 + len(FIVE)) + "|",
        *rows,
        *lines,
    ]
    return "\n".join(text) + "\n"


def _cells(findings: Sequence[Finding]) -> str:
    return ", ".join(
        f"{f.region} d {f.d:+.2f} p {f.p:.4f}" + ("" if f.correct else " (wrong)") for f in findings
    )


def slopes(people: Sequence[Person], made: Made) -> list[str]:
    """Achieved on asked changes of the five lobes, and of the occipital lobe over their mean."""
    some = [p for p in people if p.number in made]
    who = [str(p.number) for p in some]

    def change(name: str) -> np.ndarray:
        return np.array([np.log(made[p.number][0][name] / p.measured[name]) for p in some])

    cells = []
    for name in FIVE:
        asked = np.array([made[p.number][1].get(name, 0.0) for p in some])
        e = ratio_over_people(change(name) * asked, asked**2, who)
        cells.append(f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]")
    # Both directions count alike.
    sign = np.array([-1.0 if p.ill else 1.0 for p in some])
    effect = np.mean([change(name) for name in FIVE], 0) * sign
    if not np.any(effect):
        return [*cells, ""]
    e = ratio_over_people(change(f"cortex_{UNCHANGED}") * sign, effect, who)
    return [*cells, f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]"]


def studies(seed: int, *, disorder: bool) -> dict[str, list[Finding]]:
    """One more study by true volumes alone. Without the `disorder` all are healthy, and the groups
    are labels."""
    subjects = everybody(seed)
    label = [float(s.parents.aud[0]) for s in subjects]
    if not disorder:
        subjects = [other_group(s) if s.parents.aud[0] else s for s in subjects]
    volumes = [true_volumes(s) for s in subjects]
    conditions = [{**conditions_of(s), "aud": ill} for s, ill in zip(subjects, label, strict=True)]
    asked: Made = {}
    for fold in range(FOLDS):
        others = [n for n in range(PEOPLE) if n % FOLDS != fold]
        law = Law(law_of([volumes[n] for n in others], [conditions[n] for n in others]), "cohort")
        for n in range(fold, PEOPLE, FOLDS):
            here = {**volumes[n], **conditions[n]}
            answer = world(law, here, {**here, "aud": 1.0 - label[n]})
            asked[n] = {**volumes[n], **answer.volumes}, answer.changes
    nobody = np.zeros(0)
    people = [
        Person(n, nobody, nobody, conditions[n], volumes[n], {}, ({}, {})) for n in range(PEOPLE)
    ]
    copies: Made = {n: (volumes[n], {}) for n in range(PEOPLE)}
    found = {"copy": replicate(cohort_of(people, copies, ADJUSTED[0]))}
    found["asked"] = replicate(cohort_of(people, asked, ADJUSTED[0]))
    if disorder:
        true: Made = {n: (true_volumes(other_group(s)), {}) for n, s in enumerate(subjects)}
        found["oracle"] = replicate(cohort_of(people, true, ADJUSTED[0]))
    return found


def power(out: Path, replications: int) -> str:
    """How often each cell of Table 3 comes out significant, and all thirty right."""
    path = out / "power.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for disorder in (True, False):
        for k in range(replications):
            key = f"{'with' if disorder else 'without'} {k}"
            if key in known:
                continue
            found = studies(SEED + 1 + k, disorder=disorder)
            known[key] = {
                way: [[f.comparison, f.region, f.p < 0.05 / 6, f.should_differ] for f in findings]
                for way, findings in found.items()
            }
            write_atomically(path, lambda p: p.write_text(json.dumps(known)))
    text = []
    for kind in ("with", "without"):
        some = [v for key, v in known.items() if key.split()[0] == kind]
        for way in some[0]:
            cells = np.array([[hit for _, _, hit, _ in one[way]] for one in some])
            due = np.array([d for _, _, _, d in some[0][way]]) & (kind == "with")
            right = (cells == due).sum(1)
            still = cells[:, ~due].mean()
            found_ = cells[:, due].mean() if due.any() else float("nan")
            text.append(
                f"{kind} the disorder, {way}: {len(some)} studies, cells right mean "
                f"{right.mean():.1f}, all thirty in {np.mean(right == 30):.0%}; of cells that "
                f"should differ {found_:.0%} do, of the others {still:.1%}"
            )
            hits = list(zip([(c, r) for c, r, _, _ in some[0][way]], cells.mean(0), strict=True))
            for comparison in COMPARISONS:
                some_hits = [f"{r} {h:.0%}" for (c, r), h in hits if c == comparison]
                text.append(f"    {comparison}: {', '.join(some_hits)}")
    return "\n".join(text) + "\n"


def draw(out: Path) -> None:
    """OUT/pictures/NUMBER.png: the scan, every way and the truth in three planes, and below them
    what changed."""
    (out / "pictures").mkdir(exist_ok=True)
    for number in range(PICTURED):
        path = out / "scans" / f"{number:03d}.npz"
        if not path.exists():
            continue
        with np.load(path) as arrays:
            if "there" not in arrays:
                continue
            scan, there = arrays["image"], arrays["there"]
        saved = [f / f"{number:03d}.npy" for f in sorted((out / "edits").glob("*"))]
        images = [scan, *(np.load(p) for p in saved if p.exists()), there]
        high = float(np.percentile(scan[scan > 0], 99))
        draw_planes(out / "pictures" / f"{number:03d}.png", [i / high for i in images])
        changes = [0.5 + 2 * (i - scan) / high for i in images]
        draw_planes(out / "pictures" / f"{number:03d}-changes.png", changes)
