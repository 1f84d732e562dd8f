"""Later visits of the simulator's people from the first: PCGM's task 2.

    python benchmarks/visits.py --out build/visits --n 40 --by tissue
    python benchmarks/visits.py --out build/visits --n 40 --by masks tissue+masks \
        --bundle build/control/concatenate --depth 1 --steps 20
    python benchmarks/visits.py --out build/visits --n 40 --by conditions --bundle build/cycle/full

Everybody comes five times, a year and a half apart (preset 'lifespan', nobody ill at first): his
slope is his own, and a volume measured again is a little another. From the first scan every way
makes the later ones; the segmenter reads them all. Of each person and region: Pearson correlation
of the later volumes with the real ones, their normalised mean square error (`metrics/morphometry`),
that of the change alone, and the slope of made on real change over everybody; beside `copy`, the
first scan again, and `asked`, what the law asks for. The law is fitted to 800 others. OUT/WAY has
a file a person; interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from aud import How, edits_of, opened_of
from aud_people import Person as Scan
from aud_people import measured, true_volumes
from cycle_autoencoder import DEFAULT
from cycle_people import levelled
from scm import fitted

from cfgen.config import DEFAULT_GRID, EDIT, SEED, By
from cfgen.data.volume import write_atomically
from cfgen.edit.edits import Question, TissueEdits
from cfgen.edit.volumes import Law
from cfgen.errors import CfgenError
from cfgen.metrics.morphometry import trajectory
from cfgen.metrics.statistics import mean_over_people, ratio_over_people
from cfgen.sim import cohort
from cfgen.sim.cohort import Subject
from cfgen.sim.graph import PLAIN, graph
from cfgen.sim.reference import reference
from cfgen.sim.render import render

VISITS = 5
# Numbers from here on: nobody whom a model or a law was trained on.
FROM = 20_000
WAYS: tuple[By, ...] = ("conditions", "tissue", "masks", "tissue+masks")
REGIONS = ("lateral_ventricle", "hippocampus", "cortex_frontal", "cortex_temporal")
Volumes = list[dict[str, float]]


def people(n: int) -> list[list[Subject]]:
    """The visits of each of the first `n` who are well and stay within the ages of the graph."""
    chosen = replace(cohort.preset("lifespan"), age=(20.0, 82.0), disease="none")
    everybody = cohort.sample(graph(), chosen, SEED, FROM, FROM + n, visits=VISITS)
    return [[s for s in everybody if s.number == FROM + k] for k in range(n)]


@cache
def law() -> Law:
    return Law(fitted(800, 5, PLAIN, "linear", None), "cohort")


def values_of(subject: Subject) -> dict[str, float | str]:
    p = subject.parents
    sex = "M" if p.male[0] else "F"
    return {"age": float(p.age[0]), "sex": sex, "ad": float(p.ad[0]), "aud": float(p.aud[0])}


def first_scan(visits: Sequence[Subject], out: Path, device: str) -> Scan | None:
    """The first visit, and OUT/real/NUMBER.json: what the segmenter reads at each."""
    number, path = visits[0].number, out / "real" / f"{visits[0].number}.json"
    head = reference(DEFAULT_GRID)
    try:
        first = render(graph(), head, visits[0], SEED)
        if not path.exists():
            later = [render(graph(), head, s, SEED + s.visit).image for s in visits[1:]]
            seen = [measured(image, device) for image in (first.image, *later)]
            write_atomically(path, lambda p: p.write_text(json.dumps(seen)))
    except CfgenError as error:
        print(f"{number}: {error}", flush=True)
        return None
    read: Volumes = json.loads(path.read_text())
    true = true_volumes(visits[0])
    return Scan(number, first.image, levelled(first), values_of(visits[0]), read[0], {}, (true, {}))


def follow(visits: Sequence[Subject], hows: Sequence[How]) -> None:
    """OUT/WAY/NUMBER.json of every way: what is read in the later scans that it makes."""
    number = visits[0].number
    left = [how for how in hows if not (how.out / how.by / f"{number}.json").exists()]
    if not left:
        return
    scan = first_scan(visits, left[0].out, left[0].device)
    if scan is None:
        return
    here = {**scan.measured, **scan.conditions}
    targets = [{**here, "age": values_of(s)["age"]} for s in visits[1:]]
    # All ways move the same tissue.
    tissue = TissueEdits(Question(opened_of(scan, left[0].device), law(), here, targets))
    for how in left:
        follow_by(how, number, tissue)


def follow_by(how: How, number: int, tissue: TissueEdits) -> None:
    visits = range(len(tissue.question.targets))
    asked = [tissue.question.world(k).changes for k in visits]
    try:
        edits = edits_of(how, tissue)
        made = [measured(next(edits.images(k)), how.device) for k in visits]
    except CfgenError as error:
        print(f"{number}, {how.by}: {error}", flush=True)
        return
    text = json.dumps({"made": made, "asked": asked})
    write_atomically(how.out / how.by / f"{number}.json", lambda p: p.write_text(text))


def table(out: Path) -> str:
    """Of every way that there is; `copy` and `asked` are of those who have a real trajectory."""
    real = {int(p.stem): json.loads(p.read_text()) for p in (out / "real").glob("*.json")}
    found: dict[str, dict[int, Volumes]] = {
        "copy": {n: [seen[0]] * VISITS for n, seen in real.items()},
        "asked": {},
    }
    for way in WAYS:
        for path in (out / way).glob("*.json"):
            one, number = json.loads(path.read_text()), int(path.stem)
            first = real[number][0]
            found.setdefault(way, {})[number] = [first, *one["made"]]
            found["asked"][number] = [
                first,
                *({n: v * np.exp(c.get(n, 0.0)) for n, v in first.items()} for c in one["asked"]),
            ]
    text = []
    for region in REGIONS:
        text += ["", f"{region}:", "", "| | people | Pearson | NMSE | of the change | slope |"]
        text.append("|---" * 6 + "|")
        for way, made in found.items():
            cells = row(real, made, region)
            text.append(f"| {way} | {len(made)} | {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def row(real: Mapping[int, Volumes], made: Mapping[int, Volumes], region: str) -> list[str]:
    ages = cohort.VISIT_YEARS * np.arange(VISITS)
    who, paths, moved = [], [], []
    for number, volumes in made.items():
        true, mine = (np.array([v[region] for v in seen]) for seen in (real[number], volumes))
        who.append(str(number))
        paths.append(trajectory(ages, true, mine))
        moved.append((np.log(true[1:] / true[0]), np.log(mine[1:] / mine[0])))
    x, y = (np.stack(parts) for parts in zip(*moved, strict=True))
    estimates = [
        mean_over_people(np.array([p.pearson for p in paths]), who),
        mean_over_people(np.array([p.nmse for p in paths]), who),
        ratio_over_people(((y - x) ** 2).mean(1), (x**2).mean(1), who),
        ratio_over_people((x * y).mean(1), (x * x).mean(1), who),
    ]
    digits = (2, 5, 2, 2)
    return [
        f"{e.value:.{d}f} [{e.low:.{d}f}, {e.high:.{d}f}]"
        for e, d in zip(estimates, digits, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--by", choices=WAYS, nargs="*", default=["tissue"])
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--steps", type=int, default=EDIT.steps)
    parser.add_argument("--depth", type=float, default=EDIT.depth)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("real", *options.by):
        (options.out / name).mkdir(parents=True, exist_ok=True)
    edit = replace(EDIT, steps=options.steps, depth=options.depth)
    ways = [How(options.out, by, options.bundle, "true", options.device, edit) for by in options.by]
    for visits in people(options.n):
        follow(visits, ways)
    text = table(options.out)
    (options.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
