"""Counterfactuals against the truth: a bundle that is trained on simulated brains, query by query.

    python benchmarks/truth.py --out build/truth            # half an hour on two cores
    python benchmarks/truth.py --out build/truth --full     # hours
    python benchmarks/truth.py --out build/tiny --tiny      # two queries, to see that it runs

Simulates a cohort with its true counterfactuals, trains a bundle on the train split, edits the test
split, and prints errors against the truth with 95 % BCa bootstrap intervals over people. Baselines:
`copy` is the factual scan, `group-mean` adds the mean true change of the training subjects,
`oracle` is the truth itself. Ventricles are counted in the images, of all methods in the same way,
in and around what the factual label map calls ventricle.
"""

from __future__ import annotations

import argparse
import csv
import logging
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from cfgen.batch.preparation import prepare_scans
from cfgen.config import AUTOENCODER_FIT, LATENT_DIFFUSION_FIT, PREPROCESS
from cfgen.data.conditions import Intervention, Schema, parse_interventions
from cfgen.data.manifest import read_manifest
from cfgen.data.table import Row, write_table
from cfgen.data.volume import read_volume
from cfgen.edit.engine import Engine, load_engine
from cfgen.jobs.counterfactual_files import Options
from cfgen.jobs.counterfactuals import plan, run
from cfgen.jobs.simulate import Plan, simulate
from cfgen.jobs.train_autoencoder import Asked, train_autoencoder
from cfgen.jobs.train_latent_diffusion import train_latent_diffusion
from cfgen.metrics.morphometry import ventricle_count
from cfgen.metrics.statistics import Estimate, mean_over_people
from cfgen.metrics.truth import group_mean_shift, image_truth, volume_truth
from cfgen.scan.brain import BrainFinder
from cfgen.scan.gate import Gate
from cfgen.sim import cohort
from cfgen.sim.graph import graph

QUERIES = ("age=+20", "sex=other", "ad=0.8", "aud=1", "field_tesla=1.5", "sequence=SPGR")
# The brain stays as it is under these, and its brightness does not: no ventricles are counted.
ACQUISITION = ("field_tesla=1.5", "sequence=SPGR")
CONDITIONS = ("ad", "aud", "manufacturer", "field_tesla", "sequence")
SIZES = {"tiny": (6, 2, 2), "quick": (40, 30, 40), "full": (400, 4000, 4000)}
DEFAULT = Path(__file__).parents[1] / "cfgen" / "bundles" / "default"


def asked(size: str) -> dict[str, list[str]]:
    """Query -> interventions; the other sex is one of two."""
    queries = (QUERIES[0], QUERIES[-1]) if size == "tiny" else QUERIES
    return {q: ["sex=M", "sex=F"] if q == "sex=other" else [q] for q in queries}


def in_terms_of(known: Schema, text: str) -> Intervention:
    return parse_interventions(known, sets=[text])[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_const", const="tiny", dest="size")
    parser.add_argument("--full", action="store_const", const="full", dest="size")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    queries = asked(options.size or "quick")
    n, ae_steps, ldm_steps = SIZES[options.size or "quick"]
    out: Path = options.out
    known = cohort.schema(graph())
    if not (out / "cohort" / "manifest.csv").exists():
        truths = tuple(in_terms_of(known, t) for group in queries.values() for t in group)
        simulate(Plan(cohort.preset("mixed"), 0, n, truths, options.seed), out / "cohort")
    rows = read_manifest(out / "cohort" / "manifest.csv", known)
    learn = [r for r in rows if r.split != "test"]
    prepare_scans(learn, out / "prepared", PREPROCESS, BrainFinder(), Gate(), keep_going=False)
    bundle = out / "bundle"
    if not (bundle / "unet.safetensors").exists():
        fit = replace(AUTOENCODER_FIT, steps=ae_steps)
        manifest = out / "prepared" / "manifest.csv"
        about = {"name": "simulated brains"}
        # A small cohort may have seen one field strength alone.
        varied = [c for c in CONDITIONS if len({r.values[c] for r in learn}) > 1]
        wanted = Asked(manifest, PREPROCESS, fit, init=DEFAULT, conditions=varied)
        train_autoencoder(wanted, out / "ae", "cpu", about)
        fit = replace(LATENT_DIFFUSION_FIT, steps=ldm_steps)
        train_latent_diffusion(manifest, out / "ae", bundle, fit, "cpu")
    table = measure(out, rows, known, bundle, queries)
    write_table(out / "truth.csv", table)
    for line in table:
        print("  ".join(f"{v:>14}" for v in line.values()))


def measure(
    out: Path, rows: list[Row], known: Schema, bundle: Path, queries: dict[str, list[str]]
) -> list[dict[str, str]]:
    """A line for every query and method."""
    truths = {
        (t["subject"], t["intervention"]): t
        for t in csv.DictReader((out / "cohort" / "truth.csv").open(newline=""))
    }
    engine = load_engine(bundle, "cpu", "none")
    names = engine.bundle.schema.names
    queries = {q: texts for q, texts in queries.items() if q.partition("=")[0] in names}
    every = [text for texts in queries.values() for text in texts]
    edits = {
        row.subject: edited(engine, row, every, known, truths, out / "edits")
        for row in rows
        if row.split == "test"
    }
    table = []
    for query, texts in queries.items():
        group = [in_terms_of(known, text) for text in texts]
        shift = mean_change(out, [r for r in rows if r.split == "train"], group, truths)
        scores: dict[str, list] = defaultdict(list)
        volumes: dict[str, list] = defaultdict(list)
        whose: list[str] = []
        for row in (r for r in rows if r.split == "test"):
            for label in (i.label() for i in group):
                if label in edits[row.subject]:
                    truth, made = truths[row.subject, label], edits[row.subject][label]
                    score(out, row, truth, read_volume(made).data, shift, scores, volumes)
                    whose.append(row.subject)
        for method, found in scores.items():
            line = {"query": query, "method": method, "n": str(len(set(whose)))}
            for name in ("skill", "slope", "correlation", "leakage", "mae"):
                values = np.array([getattr(f, name) for f in found])
                line[name] = _text(mean_over_people(values, whose))
            of = volume_truth(*np.array(volumes[method]).T, subjects=whose)
            if query in ACQUISITION:
                of = replace(of, slope=Estimate(np.nan), nmse=Estimate(np.nan))
            line |= {
                "ventricles slope": f"{of.slope.value:.2f}",
                "ventricles nmse": f"{of.nmse.value:.2f}",
            }
            table.append(line)
    return table


def _text(found: Estimate) -> str:
    """Value and interval; what is the same for everybody has none."""
    text = f"{found.value:.3f}"
    return text if np.isnan(found.low) else f"{text} [{found.low:.3f}, {found.high:.3f}]"


def edited(
    engine: Engine, row: Row, texts: list[str], known: Schema, truths: dict, folder: Path
) -> dict[str, Path]:
    """Label -> counterfactual of a row, of interventions that have a truth and change something.

    The bundle's conditions are in terms of its own; all targets share one inversion.
    """
    schema = engine.bundle.schema
    values = {n: schema.check_value(n, row.values[n], row.source) for n in schema.names}
    due = []
    for text in texts:
        intervention = in_terms_of(known, text)
        changes = not intervention.is_null(row.values)
        if changes and (row.subject, intervention.label()) in truths:
            due.append(in_terms_of(schema, text))
    (made,) = plan([replace(row, values=values)], due, folder)
    if not all(path.exists() for path in made.outputs.values()):
        options = Options(picture=False, overwrite=True)
        run(engine, [made], options, "the simulator", keep_going=False)
    return {i.label(): path for i, path in made.outputs.items()}


def mean_change(out: Path, rows: list[Row], group: list, truths: dict) -> np.ndarray:
    factuals, trues = [], []
    for row in rows:
        for intervention in group:
            truth = truths.get((row.subject, intervention.label()))
            if truth is not None and not intervention.is_null(row.values):
                factuals.append(read_volume(row.image).data)
                trues.append(read_volume(out / "cohort" / truth["image"]).data)
    return group_mean_shift(factuals, trues)


def score(out, row, truth, made, shift, scores, volumes) -> None:
    factual, true = read_volume(row.image), read_volume(out / "cohort" / truth["image"])
    labels = read_volume(row.labels).data
    after = read_volume(out / "cohort" / truth["labels"]).data
    mask = (labels > 0) | (after > 0)
    white = np.median(factual.data[np.isin(labels, (2, 41))])
    sigma = 0.01 * white
    counter = ventricle_count(factual.data, labels, "freesurfer", factual.grid.spacing[0])
    methods = {
        "cfgen": made,
        "copy": factual.data,
        "group-mean": np.where(mask, factual.data + shift, 0),
        "oracle": true.data,
    }
    counts = {
        name: float(counter.count(image))
        for name, image in {**methods, "factual": factual.data}.items()
    }
    for name, image in methods.items():
        scores[name].append(image_truth(factual.data, image, true.data, mask, sigma))
        volumes[name].append((counts["factual"], counts[name], counts["oracle"]))


if __name__ == "__main__":
    main()
