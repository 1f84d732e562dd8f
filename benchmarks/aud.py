r"""Do counterfactuals repeat a study? PCGM's task 3 on the simulator's 222 people with alcohol use
disorder and 199 controls.

    python benchmarks/aud.py scans --out build/aud --workers 2
    python benchmarks/aud.py edits --out build/aud --by tissue
    python benchmarks/aud.py edits --out build/aud --by masks tissue+masks \
        --bundle build/control/concatenate
    python benchmarks/aud.py table --out build/aud
    python benchmarks/aud.py power --out build/aud

`scans` draws everybody and his true counterfactual in the other group (preset 'aud', 2 mm) and
measures both by the shipped segmenter. `edits` makes the counterfactuals and measures them: the law
of volumes of each fifth of the people is fitted to the others, on their true volumes, or with
--law measured on the segmenter's; as in PCGM the disorder has no arrow to the occipital lobe.
--by conditions asks the bundle's diffusion model alone (CDM), if it knows the disorder. `table`
prints for every way, and beside them for `copy` (the scan itself), `asked` (what the law asks for,
as if the image had it) and `oracle` (the true counterfactual), how many of Table 3's thirty cells
are right, p, paired p, Cohen's d and equivalence (`metrics/aud.py`), the slope of achieved on asked
changes by lobe, and the occipital lobe's change over the mean change of the five. `power` draws
the study fifty times by volumes alone, with the disorder and without. OUT/edits/WAY has a file a
person, OUT/pictures some people; interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from cycle_autoencoder import DEFAULT
from cycle_people import levelled
from scm import STRUCTURES

from cfgen.bundle import read_bundle
from cfgen.causal.causal_graph import Declared, Sketch, in_order
from cfgen.causal.scm import Scm
from cfgen.causal.scm_fit import fit_scm, graph_of
from cfgen.config import DEFAULT_GRID, EDIT, SEED, By, Edit, ScmFit
from cfgen.data.conditions import parse_interventions
from cfgen.data.volume import Volume, write_atomically
from cfgen.device import pick_device
from cfgen.edit.edits import Drawing, Edits, Question, TissueEdits, edit_latents
from cfgen.edit.engine import Engine
from cfgen.edit.filled import FilledEdits
from cfgen.edit.masked import edit_by_masks
from cfgen.edit.volumes import Law, volumes_by_structure, world
from cfgen.errors import CfgenError
from cfgen.measure.segmenter import LazySegmentation, load_segmenter, soft_volumes
from cfgen.metrics.aud import COMPARISONS, REGIONS, UNCHANGED, Cohort, Finding, correct, replicate
from cfgen.metrics.statistics import ratio_over_people
from cfgen.scan.brain import Brain, BrainFinder
from cfgen.scan.open import Opened
from cfgen.scan.prepare import Prepared
from cfgen.sim import cohort
from cfgen.sim.cohort import Subject
from cfgen.sim.graph import PLAIN, Stress, graph
from cfgen.sim.reference import reference
from cfgen.sim.render import render
from cfgen.space.grids import model_grid

PEOPLE = sum((222, 199))
FOLDS = 5
LOBES = tuple(f"cortex_{name}" for name in REGIONS)
FIVE = tuple(name for name in LOBES if name != f"cortex_{UNCHANGED}")
# What is no part of the supratentorial volume, or a sum of others.
NOT_ABOVE = {"csf", "brainstem", "cerebellum_gm", "cerebellum_wm", "fourth_ventricle"}
SUMS = {"cortex", "brain", "tiv"}
WAYS: tuple[By, ...] = ("conditions", "tissue", "masks", "tissue+masks")
PICTURED = 8
REPLICATIONS = 50


def everybody(seed: int = SEED) -> list[Subject]:
    return cohort.sample(graph(), cohort.preset("aud"), seed, 0, PEOPLE)


def other_group(subject: Subject, stress: Stress = PLAIN) -> Subject:
    """The same person with the disorder, or without."""
    ill = float(subject.parents.aud[0]) > 0
    asked = parse_interventions(cohort.schema(graph()), sets=[f"aud={0 if ill else 1}"])[0]
    return cohort.counterfactual(graph(), subject, asked, stress)


@dataclass(frozen=True)
class Person:
    """A scan (D, H, W) and what the segmenter measured in it and in its true counterfactual, mm3 by
    structure; `true` are the simulator's own volumes of both."""

    number: int
    image: np.ndarray
    level: np.ndarray
    conditions: dict[str, float | str]
    measured: dict[str, float]
    oracle: dict[str, float]
    true: tuple[dict[str, float], dict[str, float]]

    @property
    def ill(self) -> bool:
        return float(self.conditions["aud"]) > 0


def true_volumes(subject: Subject) -> dict[str, float]:
    regions = zip(graph().regions, subject.volumes.regions[0], strict=True)
    return {STRUCTURES[name]: 1000 * float(v) for name, v in regions} | {
        "tiv": 1000 * float(subject.volumes.tiv[0])
    }


@cache
def segmenter(device: str) -> torch.nn.Module:
    return load_segmenter(read_bundle(DEFAULT), pick_device(device))


def measured(image: np.ndarray, device: str) -> dict[str, float]:
    scan = Volume(image.astype(np.float32), model_grid(DEFAULT_GRID).affine)
    return volumes_by_structure(soft_volumes(segmenter(device), scan, pick_device(device)))  # type: ignore[arg-type]


def draw_person(number: int, out: Path, device: str) -> None:
    """OUT/scans/NUMBER.npz, and OUT/facts/NUMBER.json; of one whose volumes do not fit the one
    head's folds that is empty."""
    torch.set_num_threads(1)
    path, facts_path = out / "scans" / f"{number:03d}.npz", out / "facts" / f"{number:03d}.json"
    if facts_path.exists():
        return
    subject, head = everybody()[number], reference(DEFAULT_GRID)
    try:
        other = other_group(subject)
        here, there = (render(graph(), head, s, SEED) for s in (subject, other))
    except CfgenError:
        write_atomically(facts_path, lambda p: p.write_text("{}"))
        return
    facts = {
        "conditions": conditions_of(subject),
        "measured": measured(here.image, device),
        "oracle": measured(there.image, device),
        "true": [true_volumes(subject), true_volumes(other)],
    }
    arrays = {"image": here.image.astype(np.float32), "level": levelled(here)}
    if number < PICTURED:
        arrays["there"] = there.image.astype(np.float32)
    write_atomically(path, partial(_savez, arrays))
    write_atomically(facts_path, lambda p: p.write_text(json.dumps(facts)))


def _savez(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)


def read_person(out: Path, number: int) -> Person | None:
    """None of one who could not be drawn."""
    person = facts_of(out / "facts" / f"{number:03d}.json")
    if person is None:
        return None
    with np.load(out / "scans" / f"{number:03d}.npz") as arrays:
        return replace(person, image=arrays["image"], level=arrays["level"])


def facts_of(path: Path) -> Person | None:
    """Without images."""
    facts, nothing = json.loads(path.read_text()), np.zeros(0)
    if not facts:
        return None
    true = facts["true"][0], facts["true"][1]
    conditions, seen, oracle = facts["conditions"], facts["measured"], facts["oracle"]
    return Person(int(path.stem), nothing, nothing, conditions, seen, oracle, true)


def read_facts(out: Path) -> list[Person]:
    """Everybody who could be drawn, images left out."""
    found = [facts_of(path) for path in sorted((out / "facts").glob("*.json"))]
    return [person for person in found if person is not None]


def sketch() -> Sketch:
    """PCGM's graph: age, sex and the disorder, head size, and regions, of which the occipital lobe
    does not follow the disorder."""
    causes = ("age", "sex", "tiv")
    nodes = {name: Declared() for name in ("age", "sex", "aud")}
    nodes["tiv"] = Declared(("sex",), "volume")
    for name in STRUCTURES.values():
        ill = () if name == f"cortex_{UNCHANGED}" else ("aud",)
        nodes[name] = Declared((*causes, *ill), "volume", "mm3")
    return Sketch({n: nodes[n] for n in in_order({n: d.parents for n, d in nodes.items()})})


def law_of(volumes: Sequence[Mapping[str, float]], conditions: Sequence[Mapping]) -> Scm:
    """Fitted to people's volumes (mm3)."""
    names = [*STRUCTURES.values(), "tiv"]
    columns = {n: np.array([v[n] for v in volumes]) for n in names}
    columns |= {n: np.array([c[n] for c in conditions]) for n in ("age", "sex", "aud")}
    return fit_scm(graph_of(sketch(), columns), columns, ScmFit(members=0))


def conditions_of(subject: Subject) -> dict[str, float | str]:
    p = subject.parents
    return {"age": float(p.age[0]), "sex": "M" if p.male[0] else "F", "aud": float(p.aud[0])}


@cache
def laws(out: Path, which: str) -> list[Scm]:
    """Of every fold, fitted to all who are not in it: to their true volumes, or the segmenter's."""
    known: dict[int, tuple[dict[str, float], dict[str, float | str]]]
    if which == "true":
        known = {s.number: (true_volumes(s), conditions_of(s)) for s in everybody()}
    else:
        known = {p.number: (p.measured, p.conditions) for p in read_facts(out)}
    fitted = []
    for fold in range(FOLDS):
        others = [pair for number, pair in known.items() if number % FOLDS != fold]
        fitted.append(law_of([v for v, _ in others], [c for _, c in others]))
    return fitted


def opened_of(person: Person, device: str) -> Opened:
    """The scan as it lies on the model grid, its brightness levelled by the true white matter."""
    grid, inside = model_grid(DEFAULT_GRID), person.image > 0
    scan = Volume(person.image, grid.affine)
    level = person.level.astype(np.float32)
    prepared = Prepared(
        image=level,
        mask=inside,
        grid=grid,
        native=scan.grid,
        native_mask=inside,
        to_native=np.eye(4),
        scale=1.0,
        log_bias=log_field(person.image, level),
        bias_grid=grid,
    )
    regions = LazySegmentation(segmenter(device), scan, pick_device(device))  # type: ignore[arg-type]
    return Opened(scan, Brain(inside, "mask", "all of it", regions=regions), [], [], prepared)


def log_field(image: np.ndarray, level: np.ndarray) -> np.ndarray:
    """ln of what brightness was divided by (D, H, W): a polynomial of order 3, in which it lies."""
    axes = [np.linspace(-1, 1, n) for n in image.shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    terms = [x**i * y**j * z**k for i in range(4) for j in range(4 - i) for k in range(4 - i - j)]
    some = (level > 0.2) & (level < 1.1)
    some &= np.cumsum(some.ravel()).reshape(some.shape) % 20 == 0
    ratio = np.log(image[some] / level[some])
    beta = np.linalg.lstsq(np.stack([t[some] for t in terms], 1), ratio, rcond=None)[0]
    return np.sum([b * t for b, t in zip(beta, terms, strict=True)], 0).astype(np.float32)


@cache
def engine_of(bundle: Path, device: str) -> Engine:
    torch_device = pick_device(device)
    finder = BrainFinder("auto", None, segmenter(device), torch_device)  # type: ignore[arg-type]
    return Engine(read_bundle(bundle), finder, torch_device)


@dataclass(frozen=True)
class How:
    out: Path
    by: By
    bundle: Path
    law: str
    device: str
    edit: Edit

    @property
    def folder(self) -> Path:
        name = self.by if self.law == "true" else f"{self.by}-measured"
        if self.edit.guidance != 1:
            name += f"-g{self.edit.guidance:g}"
        return self.out / "edits" / name


def question_of(person: Person, opened: Opened, law: Law) -> Question:
    here = {**person.measured, **person.conditions}
    return Question(opened, law, here, [{**here, "aud": 0.0 if person.ill else 1.0}])


def edits_of(how: How, question: Question) -> Edits:
    tissue, drawing = TissueEdits(question), Drawing(how.edit)
    if how.by == "tissue":
        return tissue
    engine, (there,) = engine_of(how.bundle, how.device), question.targets
    if how.by == "conditions":
        return edit_latents(engine, question.opened, question.factual, [there], drawing)
    if how.by == "masks":
        return edit_by_masks(engine, question, drawing)
    return FilledEdits(tissue, edit_by_masks(engine, question, drawing, tissue=tissue))


def edit_person(number: int, hows: Sequence[How]) -> str:
    """OUT/edits/WAY/NUMBER.json of every way: what the law asks for and what is measured in the
    image. Who is not drawn yet is drawn."""
    torch.set_num_threads(1)
    left = [how for how in hows if not (how.folder / f"{number:03d}.json").exists()]
    if not left:
        return ""
    out, device = left[0].out, left[0].device
    draw_person(number, out, device)
    person = read_person(out, number)
    if person is None:
        return ""
    opened, said = opened_of(person, device), []
    for how in left:
        law = Law(laws(out, how.law)[number % FOLDS], "cohort")
        error = edit_by(how, person, question_of(person, opened, law))
        said += [f"{number}, {how.by}: {error}"] if error else []
    return "\n".join(said)


def edit_by(how: How, person: Person, question: Question) -> str:
    path = how.folder / f"{person.number:03d}.json"
    found: dict[str, object] = {"asked": question.world(0).changes}
    try:
        edits = edits_of(how, question)
        image = next(edits.images(0))
        account = edits.account(0)
        found["made"] = measured(image, how.device)
    except CfgenError as error:
        failed = json.dumps(found | {"error": str(error)})
        write_atomically(path, lambda p: p.write_text(failed))
        return str(error)
    if account is not None:
        # Of a region's map that was moved: how far it is from what was asked for.
        found["worst"] = account.causal.worst_volume_error
    if person.number < PICTURED:
        np.save(path.with_suffix(".npy"), image.astype(np.float32))
    write_atomically(path, lambda p: p.write_text(json.dumps(found)))
    return ""


def for_all(job: Callable[[int], str | None], people: range, workers: int) -> None:
    """By processes where there are several."""
    if workers == 1:
        for number in people:
            said = job(number)
            if said:
                print(said, flush=True)
        return
    # Not forked: a process that has used a GPU cannot be.
    with get_context("spawn").Pool(workers) as pool:
        for said in pool.imap_unordered(job, people):
            if said:
                print(said, flush=True)


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


def table(out: Path, how: Adjusted) -> str:
    people = read_facts(out)
    controls = sum(not p.ill for p in people)
    real = _cells(real_difference(people, how))
    text = [
        f"{len(people)} people, {controls} controls; {how.text}",
        "",
        f"people who are real, controls against patients: {real}",
    ]
    lines, rows = [], []
    for way, made in made_by(out, people).items():
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
    from decoders import draw as draw_planes

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("scans", "edits", "table", "power", "pictures"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--by", choices=WAYS, nargs="+", default=["tissue"])
    parser.add_argument("--n", type=int, default=PEOPLE, help="people, from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--law", choices=("true", "measured"), default="true")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--replications", type=int, default=REPLICATIONS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    out: Path = options.out
    for name in ("scans", "facts"):
        (out / name).mkdir(parents=True, exist_ok=True)
    people = range(options.first, min(options.first + options.n, PEOPLE))
    if options.stage == "scans":
        job = partial(draw_person, out=out, device=options.device)
        for_all(job, people, options.workers)
    elif options.stage == "edits":
        edit = replace(EDIT, guidance=options.guidance, guidance_from="masks")
        hows = [
            How(out, by, options.bundle, options.law, options.device, edit) for by in options.by
        ]
        for how in hows:
            how.folder.mkdir(parents=True, exist_ok=True)
        for_all(partial(edit_person, hows=hows), people, options.workers)
    elif options.stage == "power":
        print(power(out, options.replications))
    elif options.stage == "pictures":
        draw(out)
    else:
        for how_adjusted in ADJUSTED:
            text = table(out, how_adjusted)
            (out / how_adjusted.file).write_text(text, encoding="utf-8")
            print(text)


if __name__ == "__main__":
    main()
