"""Counterfactuals of simulated people by every `--by`, against the truth.

    python benchmarks/control.py --people build/cycle --out build/control --kinds masks
    python benchmarks/by.py --bundle build/control/masks-300 --out build/by --people 8

Simulates people and their true counterfactuals, and makes each anew by the conditions alone, moved
tissue, edited masks, and moved tissue that is filled; beside them `copy`, the scan as it is, and
`oracle`, the truth. The law of volumes is fitted to 800 other simulated people. Of every image:
skill, slope, correlation and leakage against the truth (`metrics/truth.py`), and of every region
that is due to change the log change that the segmenter sees, against what was due: slopes through
the origin, with BCa bootstrap intervals over people; `occipital` is the change of that lobe over
the mean change of the others, where the law asks for none of it. OUT/edits.csv has a line an edit,
OUT/pictures a picture a person. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from moved_pictures import PLANES, planes, upright
from moved_truth import Judge, cohort_in, read, write
from scm import fitted

from cfgen.config import By
from cfgen.data.conditions import Values
from cfgen.data.table import Row
from cfgen.data.volume import read_volume
from cfgen.data.volumes import sums
from cfgen.edit.edits import Drawing, Edits, Question, TissueEdits, edit_latents
from cfgen.edit.engine import Engine, load_engine
from cfgen.edit.filled import FilledEdits
from cfgen.edit.masked import edit_by_masks
from cfgen.edit.volumes import Law, volumes_by_structure
from cfgen.edit.way import way_of
from cfgen.errors import CfgenError
from cfgen.measure.segmenter import soft_volumes
from cfgen.metrics.statistics import mean_over_people, ratio_over_people
from cfgen.scan.gate import Gate
from cfgen.scan.open import Opened, open_scan
from cfgen.sim.graph import PLAIN

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BYS: tuple[By, ...] = ("conditions", "tissue", "masks", "tissue+masks")
COPY, ORACLE = "copy", "oracle"
LOBES = ("frontal", "parietal", "temporal", "occipital", "cingulate", "insula")
REGIONS = (
    *(f"cortex_{lobe}" for lobe in LOBES),
    *("lateral_ventricle", "hippocampus", "cerebral_wm"),
)
OCCIPITAL = "cortex_occipital"
# Of the law: what a volume that does not change is asked to change by, at most.
STILL = 0.003
ILLNESSES = ("ad", "aud")


def values_of(row: Row, opened: Opened) -> Values:
    """Conditions of a person, illnesses too, and volumes as the segmenter sees them."""
    regions = opened.brain.regions
    assert regions is not None
    ill = {name: float(row.extra.get(name) or 0) for name in ILLNESSES}
    known = {"age": row.values["age"], "sex": row.values["sex"]}
    return {**known, **ill, **volumes_by_structure(regions.result.volumes)}


def edits_of(engine: Engine, law: Law, opened: Opened, factual: Row, true: Row) -> dict[By, Edits]:
    here = values_of(factual, opened)
    ill = {name: float(true.extra.get(name) or 0) for name in ILLNESSES}
    there = {**here, **ill, "age": true.values["age"], "sex": true.values["sex"]}
    question = Question(opened, law, here, [there])
    tissue = TissueEdits(question)
    return {
        "conditions": edit_latents(engine, opened, here, [there], Drawing()),
        "tissue": tissue,
        "masks": edit_by_masks(engine, question, Drawing()),
        "tissue+masks": FilledEdits(
            tissue, edit_by_masks(engine, question, Drawing(), tissue=tissue)
        ),
    }


def run(engine: Engine, law: Law, out: Path, people: int, queries: Sequence[str]) -> list[dict]:
    lines = read(out / "edits.csv")
    done = {(line["subject"], line["query"]) for line in lines}
    subjects: set[str] = set()
    for factual, true in cohort_in(out / "people", people, queries, "anatomy", engine):
        query = true.extra["intervention"]
        subjects.add(true.subject)
        if len(subjects) > people or (true.subject, query) in done:
            continue
        gate = Gate(engine.bundle.card, force=True)
        opened = open_scan(factual.image, None, engine.finder, engine.bundle.preprocess, gate)
        try:
            edits = edits_of(engine, law, opened, factual, true)
            images = {by: next(edit.images(0)) for by, edit in edits.items()}
        except CfgenError as error:
            print(f"{true.subject} {query}: {error}", flush=True)
            continue
        images = {COPY: opened.volume.data, **images, ORACLE: read_volume(true.image).data}
        account = edits["tissue"].account(0)
        assert account is not None
        judge, found = Judge(factual, true), []
        for method, image in images.items():
            line = {"subject": true.subject, "query": query, "method": method}
            found.append(
                line | judge.measure(image, None) | changes(engine, opened, image, account.changes)
            )
        lines += found
        write(lines, out / "edits.csv")
        picture(images, opened, out / "pictures" / f"{true.subject}_{query}.png")
        skills = ", ".join(f"{x['method']} {x['skill']:.2f}" for x in found)
        print(f"{true.subject} {query}: {skills}", flush=True)
    return lines


def changes(
    engine: Engine, opened: Opened, image: np.ndarray, due: Mapping[str, float]
) -> dict[str, float]:
    """Of every region ln of its volume in an image over that in the scan, and what was due."""
    net, regions = engine.finder.segmenter, opened.brain.regions
    assert net is not None
    assert regions is not None
    before = sums(regions.result.volumes)
    after = sums(soft_volumes(net, opened.volume.like(image), engine.device))
    out = {}
    for name in REGIONS:
        out[f"due {name}"] = due.get(name, 0.0)
        out[f"got {name}"] = float(np.log(after[name, "both"] / before[name, "both"]))
    return out


def picture(images: Mapping[str, np.ndarray], opened: Opened, path: Path) -> None:
    """A column a method, a row a plane; below, what changed."""
    scan, mask = opened.volume, opened.brain.mask
    factual = planes(upright(scan, mask))
    high = float(np.percentile(scan.data[mask], 99.5))
    figure, axes = plt.subplots(
        2 * len(PLANES),
        len(images),
        figsize=(2 * len(images), 3.6 * len(PLANES)),
        layout="constrained",
    )
    for c, (method, image) in enumerate(images.items()):
        for p, plane in enumerate(planes(upright(scan.like(image), mask))):
            shown = {0: (plane, "gray", 0.0, high)}
            shown[1] = (plane - factual[p], "RdBu_r", -0.3 * high, 0.3 * high)
            for below, (values, colours, low, top) in shown.items():
                axis = axes[p + below * len(PLANES), c]
                axis.imshow(np.rot90(values), cmap=colours, vmin=low, vmax=top)
                axis.set_axis_off()
        axes[0, c].set_title(method, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def report(lines: Sequence[Mapping[str, object]]) -> Iterator[str]:
    """Markdown: a table of images and one of regions for every query."""
    for query in dict.fromkeys(str(x["query"]) for x in lines):
        some = [x for x in lines if x["query"] == query]
        methods = list(dict.fromkeys(str(x["method"]) for x in some))
        yield f"\n{query}, {len({x['subject'] for x in some})} people\n"
        yield "| | skill | median | slope | correlation | leakage |"
        yield "|---|---|---|---|---|---|"
        for method in methods:
            own = [x for x in some if x["method"] == method]
            who = [str(x["subject"]) for x in own]
            cells = []
            for name in ("skill", "slope", "correlation", "leakage"):
                e = mean_over_people(column(own, name), who)
                cells.append(f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]")
            cells.insert(1, f"{np.median(column(own, 'skill')):.2f}")
            yield f"| {method} | {' | '.join(cells)} |"
        due = {n: column([x for x in some if x["method"] == COPY], f"due {n}") for n in REGIONS}
        asked = [n for n in REGIONS if np.abs(due[n]).mean() > STILL]
        still = OCCIPITAL not in asked
        yield "\nachieved on due:\n"
        yield f"| | {' | '.join(asked)} |{' occipital |' if still else ''}"
        yield "|---" * (1 + len(asked) + still) + "|"
        for method in methods:
            own = [x for x in some if x["method"] == method]
            who = [str(x["subject"]) for x in own]
            cells = []
            for name in asked:
                x, y = column(own, f"due {name}"), column(own, f"got {name}")
                e = ratio_over_people(x * y, x * x, who)
                cells.append(f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]")
            if still:
                lobes = [n for n in asked if n.startswith("cortex_")]
                effect = np.mean([column(own, f"got {n}") for n in lobes], 0)
                e = ratio_over_people(column(own, f"got {OCCIPITAL}"), effect, who)
                cells.append(f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]")
            yield f"| {method} | {' | '.join(cells)} |"


def column(lines: Sequence[Mapping[str, object]], name: str) -> np.ndarray:
    return np.array([float(str(x[name])) for x in lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--query", nargs="+", default=["age=+20", "aud=1"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine = load_engine(options.bundle, "cpu")
    engine = load_engine(options.bundle, "cpu", way=way_of(engine.bundle, "tissue+masks"))
    law = Law(fitted(800, 5, PLAIN, "linear", None), "cohort")
    lines = run(engine, law, options.out, options.people, options.query)
    table = "\n".join(report(lines))
    (options.out / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
