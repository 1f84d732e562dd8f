"""Counterfactuals of real scans by every `--by`: what instruments see that never saw an edit.

    bash benchmarks/control_gpu.sh build/ixi build/control 345
    python benchmarks/by_scans.py --manifest val.csv --bundle build/control/concatenate \
        --out build/by-ixi --years -20 20 --depth 1 --steps 20

Nobody knows the truth here. Of every image: log volumes by the segmenter, beside what the law of
the bundle asks for (slopes through the origin, with BCa bootstrap intervals over people); the age
that the judge and the ridge predictor see, which learned from real scans alone, against the years
asked for; gradient energy at edges over the scan's. OUT/edits.csv has a line an edit, OUT/pictures
a picture a scan, of the last of --years. What leaves the law's ages is left out. Interrupted, the
same command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from by import BYS, COPY, REGIONS, Ruler, cell, column, every_way, picture, slopes
from moved_truth import read, write
from sampling_options import add_sampling, sampling_of

from cfgen.bundle import read_bundle
from cfgen.data.manifest import read_manifest
from cfgen.data.table import Row
from cfgen.edit.edits import Drawing, Question
from cfgen.edit.engine import Engine, load_engine
from cfgen.edit.volumes import Law, volumes_by_structure
from cfgen.edit.way import way_of
from cfgen.errors import CfgenError
from cfgen.measure.judge import Judges, load_judge
from cfgen.measure.predictor import load_predictor, score_conditions
from cfgen.metrics.moved import edge_energy
from cfgen.metrics.statistics import mean_over_people, ratio_over_people
from cfgen.scan.gate import Gate
from cfgen.scan.open import Opened, open_scan

AGES = (20.0, 86.0)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class AgeReader:
    """What sees ages in an image of an opened scan, years."""

    engine: Engine
    judges: Judges
    predictor: torch.nn.Module

    def read(self, opened: Opened, image: np.ndarray) -> dict[str, float]:
        bundle = self.engine.bundle
        again = opened.prepared.again(image, bundle.preprocess.intensity_cap)
        ridge = score_conditions(self.predictor, bundle.schema, again, CPU)
        return {
            "judge": float(self.judges.judge(again[None])["age"][0]),
            "predictor": float(ridge["age"]),
        }


def question_of(engine: Engine, opened: Opened, row: Row, ages: Sequence[float]) -> Question:
    """What the law of the bundle says of a person at other ages."""
    regions = opened.brain.regions
    assert regions is not None
    known = {name: row.values[name] for name in engine.bundle.schema.names}
    here = {**known, **volumes_by_structure(regions.result.volumes)}
    there = [{**here, "age": age} for age in ages]
    return Question(opened, Law(engine.scm, "cohort"), here, there)


def run(options: argparse.Namespace, engine: Engine) -> list[dict]:
    out, bundle = options.out, engine.bundle
    drawing = Drawing(sampling_of(options), decoder=options.decoder)
    lines = read(out / "edits.csv")
    done = {line["subject"] for line in lines}
    ruler = Ruler(engine, {})
    ages = AgeReader(engine, load_judge(bundle, CPU), load_predictor(bundle, CPU))
    for row in read_manifest(options.manifest, bundle.schema)[: options.n]:
        now = float(row.values["age"])
        years = [y for y in options.years if AGES[0] <= now + y <= AGES[1]]
        if row.subject in done or not years:
            continue
        gate = Gate(bundle.card)
        opened = open_scan(row.image, None, engine.finder, bundle.preprocess, gate)
        scan, mask = opened.volume, opened.brain.mask
        sharp = edge_energy(scan.data, mask, scan.grid.spacing)

        def seen(image: np.ndarray, opened: Opened = opened) -> dict[str, float]:
            return ruler.read(opened, image) | ages.read(opened, image)

        before, found, images = seen(scan.data), [], {}
        try:
            question = question_of(engine, opened, row, [now + y for y in years])
            edits = every_way(engine, question, drawing)
            for number, asked in enumerate(years):
                account = edits["tissue"].account(number)
                assert account is not None
                due = {f"due {n}": account.changes.get(n, 0.0) for n in REGIONS}
                images = {by: next(edits[by].images(number)) for by in options.by}
                for by, image in images.items():
                    after = seen(image)
                    changes = {name: after[name] - before[name] for name in before}
                    about = {"subject": row.subject, "years": asked, "method": by}
                    edges = edge_energy(image, mask, scan.grid.spacing) / sharp
                    found.append(about | {"edges": edges} | due | changes)
        except CfgenError as error:
            print(f"{row.subject}: {error}", flush=True)
            continue
        lines += found
        out.mkdir(parents=True, exist_ok=True)
        write(lines, out / "edits.csv")
        picture({COPY: scan.data, **images}, opened, out / "pictures" / f"{row.subject}.png")
        print(f"{row.subject}: {', '.join(f'{y:+g}' for y in years)}", flush=True)
    return lines


def report(lines: Sequence[Mapping[str, object]]) -> Iterator[str]:
    """Markdown: what is seen of the years asked for, then a table of regions."""
    methods = list(dict.fromkeys(str(x["method"]) for x in lines))
    yield f"\n{len(lines) // len(methods)} edits of {len({x['subject'] for x in lines})} people\n"
    yield "| | judge, older | younger | predictor, older | younger | edges |"
    yield "|---|---|---|---|---|---|"
    for method in methods:
        own = [x for x in lines if x["method"] == method]
        cells = []
        for instrument in ("judge", "predictor"):
            for older in (True, False):
                some = [x for x in own if (float(str(x["years"])) > 0) == older]
                if not some:
                    cells.append("")
                    continue
                x, y = column(some, "years"), column(some, instrument)
                who = [str(x["subject"]) for x in some]
                cells.append(cell(ratio_over_people(x * y, x * x, who)))
        e = mean_over_people(column(own, "edges"), [str(x["subject"]) for x in own])
        yield f"| {method} | {' | '.join(cells)} | {e.value:.2f} |"
    yield from slopes(lines, "segmenter", REGIONS, still=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int)
    parser.add_argument("--years", nargs="+", type=float, default=[-20.0, 20.0])
    parser.add_argument("--by", nargs="+", default=list(BYS), choices=BYS)
    add_sampling(parser)
    parser.add_argument("--decoder", choices=("kl", "diffusion"), default="kl")
    options = parser.parse_args()
    torch.set_num_threads(1)
    way = way_of(read_bundle(options.bundle), "tissue+masks")
    engine = load_engine(options.bundle, "cpu", way=way)
    table = "\n".join(report(run(options, engine)))
    (options.out / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
