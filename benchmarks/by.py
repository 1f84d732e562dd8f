"""Counterfactuals of simulated people by every `--by`, against the truth.

    python benchmarks/control.py --people build/cycle --out build/control --kinds masks
    python benchmarks/by.py --bundle build/control/masks-300 --out build/by --n 8 \
        --as-made --people build/cycle

Simulates people and their true counterfactuals, and makes each anew by the conditions alone, moved
tissue, moved masks, and moved tissue that is filled; beside them `copy`, the scan as it is,
`oracle`, the truth, `truth, coded`: the change to the truth once through the autoencoder, which is
the most that an edit of latents can show, and `truth, told`: masks that are read in the truth,
which is what the network makes of masks that are right. The law of volumes is fitted to 800 other
simulated people. Of every image: skill, slope, correlation and leakage against the truth
(`metrics/truth.py`), and of every region that is due to change the log change that is read in it,
against what was due: slopes through the origin, with BCa bootstrap intervals over people;
`occipital` is the change of that lobe over the mean change of the others, where the law asks for
none of it. The segmenter reads the image, and with `--people` ridge regression its latent
(benchmarks/control.py); neither reads the truth rightly: compare with `oracle`. `--as-made` leaves
heads in their own size, as the people of that bundle were; else they are registered, as scans are.
OUT/edits.csv has a line an edit, of one guidance, OUT/pictures a picture a person. Interrupted, the
same command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import matplotlib
import numpy as np
import torch
from control import READERS, VolumeReader, readers_of
from cycle import data_of
from cycle_latents import latents_of
from moved_pictures import PLANES, planes, upright
from moved_truth import Judge, cohort_in, read, write
from sampling_options import add_sampling, sampling_of
from scm import STRUCTURES, fitted

from cfgen.bundle import read_bundle
from cfgen.config import By, GuidedFrom
from cfgen.data.conditions import Values
from cfgen.data.table import Row
from cfgen.data.volume import read_volume
from cfgen.data.volumes import sums
from cfgen.edit.anatomy import anatomy_of
from cfgen.edit.edits import (
    Drawing,
    Edits,
    Question,
    TissueEdits,
    decoded,
    edit_latents,
    edit_under,
)
from cfgen.edit.engine import Engine, load_engine
from cfgen.edit.filled import FilledEdits
from cfgen.edit.masked import MaskedEdits, edit_by_masks, heard, told
from cfgen.edit.volumes import Law, volumes_by_structure
from cfgen.edit.way import way_of
from cfgen.errors import CfgenError
from cfgen.measure.segmenter import soft_volumes
from cfgen.metrics.statistics import Estimate, mean_over_people, ratio_over_people
from cfgen.scan.gate import Gate
from cfgen.scan.open import Opened, open_scan
from cfgen.scan.render import render
from cfgen.sim.graph import PLAIN

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BYS: tuple[By, ...] = ("conditions", "tissue", "masks", "tissue+masks")
# The scan, the truth, and what the autoencoder lets through of the change between them.
COPY, ORACLE, CODED = "copy", "oracle", "truth, coded"
# What the network makes of the truth's own masks.
TOLD = "truth, told"
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


def edits_of(
    engine: Engine, law: Law, drawing: Drawing, opened: Opened, factual: Row, true: Row
) -> dict[By, Edits]:
    here = values_of(factual, opened)
    ill = {name: float(true.extra.get(name) or 0) for name in ILLNESSES}
    there = {**here, **ill, "age": true.values["age"], "sex": true.values["sex"]}
    return every_way(engine, Question(opened, law, here, [there]), drawing)


def every_way(engine: Engine, question: Question, drawing: Drawing) -> dict[By, Edits]:
    """The answers of every `--by`, which share the movement of the tissue."""
    tissue, factual, targets = TissueEdits(question), question.factual, question.targets
    masked = edit_by_masks(engine, tissue, drawing)
    return {
        "conditions": edit_latents(engine, question.opened, factual, targets, drawing),
        "tissue": tissue,
        "masks": masked,
        "tissue+masks": FilledEdits(masked),
    }


def coded(engine: Engine, opened: Opened, truth: np.ndarray) -> np.ndarray:
    """The scan with the change to the truth (D, H, W) as the autoencoder gives it back."""
    again = opened.prepared.again(truth, engine.bundle.preprocess.intensity_cap)
    before, after = (
        decoded(engine, engine.models.encode(torch.from_numpy(image)[None, None]))
        for image in (opened.prepared.image, again)
    )
    return render(opened.volume, opened.prepared, before, after, "residual")


def told_truth(
    engine: Engine, masked: MaskedEdits, true: Row, truth: np.ndarray, drawing: Drawing
) -> np.ndarray:
    """The scan under the masks that its true counterfactual (D, H, W) has."""
    control, opened = engine.masked.control, masked.tissue.opened
    here = masked.tissue.question.factual
    assert control is not None
    cap = engine.bundle.preprocess.intensity_cap
    again = replace(
        opened, prepared=replace(opened.prepared, image=opened.prepared.again(truth, cap))
    )
    c, target = (
        told(engine, control, values, anatomy_of(engine, scan, control.regions))
        for values, scan in ((here, opened), (heard(engine, here, true.values), again))
    )
    return next(edit_under(engine, opened, c, [target], drawing).images(0))


def as_made(opened: Opened, cap: float) -> Opened:
    """A scan that lies on the model grid already, without its registration."""
    own = replace(opened.prepared, to_native=np.eye(4), mask=opened.brain.mask)
    return replace(opened, prepared=replace(own, image=own.again(opened.volume.data, cap)))


@dataclass(frozen=True)
class Ruler:
    """What reads volumes in images of a scan: the segmenter, and `readers` by structure in the
    latent."""

    engine: Engine
    readers: Mapping[str, VolumeReader]

    def read(self, opened: Opened, image: np.ndarray) -> dict[str, float]:
        """Log volumes by '<instrument> <structure>'."""
        net, models = self.engine.finder.segmenter, self.engine.models
        assert net is not None
        seen = sums(soft_volumes(net, opened.volume.like(image), self.engine.device))
        out = {f"segmenter {n}": float(np.log(seen[n, "both"])) for n in REGIONS}
        if self.readers:
            again = opened.prepared.again(image, self.engine.bundle.preprocess.intensity_cap)
            latent = models.encode(torch.from_numpy(again)[None, None])
            out |= {f"reader {n}": reader.read(latent) for n, reader in self.readers.items()}
        return out


def run(ruler: Ruler, law: Law, options: argparse.Namespace) -> list[dict]:
    engine, out = ruler.engine, options.out
    cap = engine.bundle.preprocess.intensity_cap
    drawing = Drawing(sampling_of(options, options.guidance_from))
    lines = read(out / "edits.csv")
    done = {(line["subject"], line["query"]) for line in lines}
    subjects: set[str] = set()
    for factual, true in cohort_in(out / "people", options.n, options.query, "anatomy", engine):
        query = true.extra["intervention"]
        subjects.add(true.subject)
        if len(subjects) > options.n or (true.subject, query) in done:
            continue
        gate = Gate(engine.bundle.card, force=True)
        opened = open_scan(factual.image, None, engine.finder, engine.bundle.preprocess, gate)
        if options.as_made:
            opened = as_made(opened, cap)
        try:
            edits = edits_of(engine, law, drawing, opened, factual, true)
            images: dict[str, np.ndarray] = {by: next(e.images(0)) for by, e in edits.items()}
            truth = read_volume(true.image).data
            masked = edits["masks"]
            assert isinstance(masked, MaskedEdits)
            images[TOLD] = told_truth(engine, masked, true, truth, drawing)
        except CfgenError as error:
            print(f"{true.subject} {query}: {error}", flush=True)
            continue
        scan = opened.volume.data
        images = {COPY: scan, **images, CODED: coded(engine, opened, truth), ORACLE: truth}
        account = edits["tissue"].account(0)
        assert account is not None
        due = {f"due {n}": account.changes.get(n, 0.0) for n in REGIONS}
        judge, found, before = Judge(factual, true), [], ruler.read(opened, scan)
        for method, image in images.items():
            line = {"subject": true.subject, "query": query, "method": method}
            after = before if method == COPY else ruler.read(opened, image)
            changes = {name: after[name] - before[name] for name in before}
            found.append(line | judge.measure(image, None) | due | changes)
        lines += found
        write(lines, out / "edits.csv")
        picture(images, opened, out / "pictures" / f"{true.subject}_{query}.png")
        skills = ", ".join(f"{x['method']} {x['skill']:.2f}" for x in found)
        print(f"{true.subject} {query}: {skills}", flush=True)
    return lines


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
                cells.append(cell(e))
            cells.insert(1, f"{np.median(column(own, 'skill')):.2f}")
            yield f"| {method} | {' | '.join(cells)} |"
        due = {n: column([x for x in some if x["method"] == COPY], f"due {n}") for n in REGIONS}
        asked = [n for n in REGIONS if np.abs(due[n]).mean() > STILL]
        for instrument in ("segmenter", "reader"):
            names = [n for n in asked if f"{instrument} {n}" in some[0]]
            if names:
                yield from slopes(some, instrument, names, still=OCCIPITAL not in asked)


def slopes(
    lines: Sequence[Mapping[str, object]], instrument: str, names: Sequence[str], *, still: bool
) -> Iterator[str]:
    """Achieved on due by region; where occipital cortex is to keep `still` also what it did."""
    titles = [*names, *(["occipital"] if still else [])]
    yield f"\nachieved on due, {instrument}:\n"
    yield f"| | {' | '.join(titles)} |"
    yield "|---" * (1 + len(titles)) + "|"
    for method in dict.fromkeys(str(x["method"]) for x in lines):
        own = [x for x in lines if x["method"] == method]
        who = [str(x["subject"]) for x in own]
        found = []
        for name in names:
            x, y = column(own, f"due {name}"), column(own, f"{instrument} {name}")
            found.append(ratio_over_people(x * y, x * x, who))
        if still:
            lobes = [n for n in names if n.startswith("cortex_")]
            effect = np.mean([column(own, f"{instrument} {n}") for n in lobes], 0)
            found.append(ratio_over_people(column(own, f"{instrument} {OCCIPITAL}"), effect, who))
        yield f"| {method} | {' | '.join(map(cell, found))} |"


def cell(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def column(lines: Sequence[Mapping[str, object]], name: str) -> np.ndarray:
    return np.array([float(str(x[name])) for x in lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--people", type=Path, help="Of benchmarks/cycle.py: read latents too.")
    parser.add_argument("--query", nargs="+", default=["age=+20", "aud=1"])
    add_sampling(parser)
    parser.add_argument("--guidance-from", choices=get_args(GuidedFrom), default="masks")
    parser.add_argument("--as-made", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    way = way_of(read_bundle(options.bundle), "tissue+masks")
    engine = load_engine(options.bundle, "cpu", way=way)
    readers: dict[str, VolumeReader] = {}
    if options.people is not None:
        data, _ = data_of(options.people, engine.bundle.schema, READERS)
        numbers = latents_of(options.people, "train")[1][:READERS]
        found = readers_of(options.people, data, numbers)
        readers = {STRUCTURES[name]: reader for name, reader in found.items()}
    law = Law(fitted(800, 5, PLAIN, "linear", None), "cohort")
    lines = run(Ruler(engine, readers), law, options)
    table = "\n".join(report(lines))
    (options.out / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
