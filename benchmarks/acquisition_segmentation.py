"""Does counterfactual acquisition help a segmentation network on another vendor's scans? (cDDGM Q3)

    python benchmarks/acquisition_segmentation.py --out build/segmentation --seeds 5
    cfgen augment-iap --manifest build/segmentation/A/manifest.csv \\
      --from-manifest build/segmentation/B/manifest.csv --sample 1 --out a-like-b/
    python benchmarks/acquisition_segmentation.py --out build/segmentation --seeds 5 \\
      --made physics=a-like-b/,b-like-a/

Every simulated person is scanned by vendor A (Siemens, 3 T, MPRAGE) and by vendor B (GE, 1.5 T,
SPGR), each with a protocol that differs from person to person. A network for grey matter, white
matter and CSF learns from one vendor's scans of the train people and is tested on other people,
with the same scanner and with the other: 'none', 'plain' augmentation (gamma, bias field, noise),
'oracle' (the other vendor's true scans of the train people beside their own), and '--made' folders
of counterfactuals, from A and from B, beside their own. All see as many images.

Every training leaves its Dice by person in OUT/dice.csv's parts and is not run again; interrupted,
the same command goes on. The table has Dice, the gain over 'none' by person (seeds averaged), its
BCa interval over people and Wilcoxon's p, and the part of the oracle's gain that is reached.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import stats

from cfgen import __version__
from cfgen.bundle import new_bundle, write_card
from cfgen.config import DEFAULT_GRID, PREPROCESS, SEED, TISSUES_FIT, TissueAugmentation
from cfgen.data.conditions import default_schema, parse_interventions
from cfgen.data.manifest import write_manifest
from cfgen.data.table import Row
from cfgen.data.tissues import TISSUES
from cfgen.data.volume import Volume, write_atomically, write_new
from cfgen.errors import CfgenError
from cfgen.jobs.train_tissues import Manifests, train_tissues
from cfgen.metrics.statistics import Estimate, over_people, ratio_over_people
from cfgen.sim import cohort
from cfgen.sim.cohort import Subject
from cfgen.sim.graph import graph
from cfgen.sim.physics import reported
from cfgen.sim.reference import Reference, reference
from cfgen.sim.render import render

VENDORS = {
    "A": ["manufacturer=Siemens", "field_tesla=3", "sequence=MPRAGE"],
    "B": ["manufacturer=GE", "field_tesla=1.5", "sequence=SPGR"],
}
OTHER = {"A": "B", "B": "A"}
PRESET = "iap"
# Of ten people: so many train, one is val, the others test.
TRAINED = 5
BUILT_IN: tuple[str, ...] = ("none", "plain", "oracle")
# By person, means over seeds of the mean Dice over tissues.
Dice = dict[str, float]


def split_of(number: int) -> str:
    place = number % 10
    return "train" if place < TRAINED else "val" if place == TRAINED else "test"


def make_people(out: Path, n: int) -> None:
    """OUT/A and OUT/B: images, labels and sidecars of the same people, and a manifest each."""
    model, head = graph(), reference(DEFAULT_GRID)
    rows: dict[str, list[Row]] = {vendor: [] for vendor in VENDORS}
    variables = cohort.schema(model)
    for subject in cohort.sample(model, cohort.preset(PRESET), SEED, 0, n):
        try:
            scans = {
                vendor: _scan(
                    cohort.counterfactual(
                        model, subject, parse_interventions(variables, sets=sets)[0]
                    ),
                    head,
                    out / vendor,
                )
                for vendor, sets in VENDORS.items()
            }
        except CfgenError as error:
            print(f"{subject.key} is left out: {error}")
            continue
        for vendor, row in scans.items():
            rows[vendor].append(row)
    for vendor, of_vendor in rows.items():
        write_manifest(out / vendor / "manifest.csv", of_vendor)


def _scan(subject: Subject, head: Reference, folder: Path) -> Row:
    """The files of one scan, made where they are not there; BIDS names in sidecar and row."""
    anat = folder / subject.key / "anat"
    image, labels, sidecar = (
        anat / f"{subject.key}_{name}" for name in ("T1w.nii.gz", "dseg.nii.gz", "T1w.json")
    )
    header = reported(subject.acquisition)
    if not sidecar.exists():
        rendered = render(graph(), head, subject, SEED)
        about = f"SYNTHETIC: cfgen {__version__} simulate"
        affine = head.grid.affine
        for path in (image, labels):
            path.unlink(missing_ok=True)
        write_new(Volume(rendered.image, affine), image, np.int16, description=about)
        write_new(Volume(rendered.labels, affine), labels, np.int16, description=about)
        text = json.dumps({"Synthetic": True, "SkullStripped": True, **header}, indent=1)
        write_atomically(sidecar, lambda path: path.write_text(text + "\n"))
    parents = subject.parents
    return Row(
        subject=subject.key,
        image=image,
        labels=labels,
        split=split_of(subject.number),
        values={"age": round(float(parents.age[0]), 2), "sex": "M" if parents.male[0] else "F"},
        extra={k: v if isinstance(v, str) else f"{v:.6g}" for k, v in header.items()},
    )


def train(out: Path, vendor: str, variant: str, made: dict[str, Path], seed: int, fit: int) -> None:
    """One network, unless its Dice is there already."""
    run = out / "runs" / f"{vendor}-{variant}-{seed}"
    if (run / "bundle.json").exists():
        return
    own, other = (out / v / "manifest.csv" for v in (vendor, OTHER[vendor]))
    augmented = {"oracle": [other]}.get(variant, [])
    if variant in made:
        augmented = [made[variant] / "manifest.csv"]
    augmentation: TissueAugmentation = "plain" if variant == "plain" else "none"
    manifests = Manifests(own, augmented, [own, other])
    config = replace(TISSUES_FIT, seed=seed, steps=fit)
    print(f"training {run.name}", flush=True)
    train_tissues(manifests, out / "empty", run, config, "cpu", augmentation)


def read_dice(out: Path, vendor: str, variant: str, tested: str) -> dict[int, dict[str, Dice]]:
    """By seed and tissue, of the test people of a vendor."""
    found: dict[int, dict[str, Dice]] = {}
    for run in sorted((out / "runs").glob(f"{vendor}-{variant}-*-training")):
        seed = int(run.name.removesuffix("-training").rpartition("-")[2])
        with (run / "tissues" / "dice.csv").open(newline="") as file:
            lines = [line for line in csv.DictReader(file) if line["manifest"] == tested]
        tissues = TISSUES[1:]
        found[seed] = {t: {line["subject"]: float(line[t]) for line in lines} for t in tissues}
        found[seed]["mean"] = {
            line["subject"]: float(np.mean([float(line[t]) for t in tissues])) for line in lines
        }
    return found


def by_person(found: dict[int, dict[str, Dice]], seeds: Sequence[int], tissue: str) -> Dice:
    """Means over seeds."""
    people = found[seeds[0]][tissue]
    return {p: float(np.mean([found[s][tissue][p] for s in seeds])) for p in people}


def text(estimate: Estimate, sign: str = "") -> str:
    value, low, high, _ = estimate
    return f"{value:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"


def table(out: Path, variants: Sequence[str]) -> str:
    """What is there, as lines of Markdown; gains over the seeds that both variants have."""
    lines = [
        "| trained on | tested on | variant | seeds | CSF | grey | white | mean | gain of the mean "
        "| p | seeds that gain | of the oracle's gain |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for vendor in VENDORS:
        for tested in (vendor, OTHER[vendor]):
            found = {v: read_dice(out, vendor, v, tested) for v in variants}
            for variant in (v for v in variants if found[v]):
                lines.append(_line(vendor, tested, variant, found))
    return "\n".join(lines)


def _line(
    vendor: str, tested: str, variant: str, found: dict[str, dict[int, dict[str, Dice]]]
) -> str:
    seeds = sorted(set(found[variant]) & set(found["none"]))
    means = [
        np.mean(list(by_person(found[variant], sorted(found[variant]), t).values()))
        for t in (*TISSUES[1:], "mean")
    ]
    cells = [vendor, tested, variant, str(len(found[variant])), *(f"{m:.4f}" for m in means)]
    if variant == "none" or not seeds:
        return f"| {' | '.join([*cells, '', '', '', ''])} |"
    base, own = (by_person(found[v], seeds, "mean") for v in ("none", variant))
    people = sorted(base)
    gain = np.array([own[p] - base[p] for p in people])
    of_seeds = [
        np.mean([found[variant][s]["mean"][p] - found["none"][s]["mean"][p] for p in people])
        for s in seeds
    ]
    p = float(stats.wilcoxon(gain).pvalue) if np.any(gain) else 1.0
    cells.append(text(over_people(lambda x: x.mean(-1), people, gain), "+"))
    cells += [f"{p:.1g}", f"{sum(g > 0 for g in of_seeds)} of {len(of_seeds)}"]
    shared = sorted(set(seeds) & set(found.get("oracle", {})))
    reached = ""
    if variant != "oracle" and tested != vendor and shared:
        base, own, best = (by_person(found[v], shared, "mean") for v in ("none", variant, "oracle"))
        over = np.array([own[p] - base[p] for p in people])
        under = np.array([best[p] - base[p] for p in people])
        reached = text(ratio_over_people(over, under, people))
    return f"| {' | '.join([*cells, reached])} |"


def made_folders(
    given: Sequence[str], parser: argparse.ArgumentParser
) -> dict[str, dict[str, Path]]:
    """'NAME=FROM_A,FROM_B' -> by name, the folder of each vendor."""
    folders: dict[str, dict[str, Path]] = {}
    for entry in given:
        name, _, paths = entry.partition("=")
        parts = paths.split(",")
        if len(parts) != 2 or not name or name in BUILT_IN or "-" in name:
            parser.error(f"--made {entry}: expected NAME=FROM_A,FROM_B, the name without '-'")
        folders[name] = {"A": Path(parts[0]), "B": Path(parts[1])}
    return folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=60, help="people")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=TISSUES_FIT.steps)
    parser.add_argument("--variants", default="none,plain,oracle", help="of none, plain, oracle")
    parser.add_argument("--made", action="append", default=[], help="NAME=FROM_A,FROM_B")
    parser.add_argument("--table", action="store_true", help="print the table, train nothing")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    made = made_folders(args.made, parser)
    variants = [*args.variants.split(","), *made]
    unknown = set(args.variants.split(",")) - set(BUILT_IN)
    if unknown:
        parser.error(f"--variants {', '.join(unknown)}: expected some of {', '.join(BUILT_IN)}")
    if not args.table:
        make_people(args.out, args.n)
        write_card(new_bundle(args.out / "empty", PREPROCESS, default_schema(), {}), {})
        for seed in range(args.seeds):
            for variant in variants:
                for vendor in VENDORS:
                    folders = {name: folder[vendor] for name, folder in made.items()}
                    train(args.out, vendor, variant, folders, seed, args.steps)
    print(table(args.out, variants))


if __name__ == "__main__":
    main()
