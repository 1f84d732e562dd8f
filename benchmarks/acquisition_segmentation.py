"""Does counterfactual acquisition help a segmentation network on another vendor's scans? (cDDGM Q3)

    python benchmarks/acquisition_segmentation.py --out build/segmentation --seeds
    cfgen augment-iap --manifest build/segmentation/A/train.csv \\
      --from-manifest build/segmentation/B/train.csv --sample 1 --out a-like-b/
    python benchmarks/acquisition_segmentation.py --out build/segmentation \\
      --made physics=a-like-b/,b-like-a/

Every simulated person is scanned by vendor A (Siemens, 3 T, MPRAGE) and by vendor B (GE, 1.5 T,
SPGR), each with a protocol that differs from person to person. A network for grey matter, white
matter and CSF learns from one vendor's scans of the train people ('base') and is tested on other
people, with the same scanner and with the other. From it training goes on: as before ('none'), with
'plain' augmentation (gamma, bias field, noise), with the other vendor's true scans of the train
people beside their own ('oracle'), and with '--made' folders of counterfactuals, from A and from B,
beside their own. All see as many images.

Every training leaves its Dice by person in OUT/runs and is not run again; interrupted, the same
command goes on. The table has Dice, the gains over 'none' and over 'base' by person (seeds
averaged), their BCa intervals over people, Wilcoxon's p of the first, and the part of the oracle's
gain that is reached.
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
from cfgen.config import (
    DEFAULT_GRID,
    PREPROCESS,
    SEED,
    TISSUES_FIT,
    FitConfig,
    TissueAugmentation,
)
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
# The network that all go on from, and what it is gone on with.
BASE = "base"
MORE = replace(TISSUES_FIT, steps=400, learning_rate=3e-3)
# By person, means over seeds of the mean Dice over tissues.
Dice = dict[str, float]


def split_of(number: int) -> str:
    place = number % 10
    return "train" if place < TRAINED else "val" if place == TRAINED else "test"


def make_people(out: Path, n: int) -> None:
    """OUT/A and OUT/B: images, labels and sidecars of the same people, a manifest of all and one of
    the train people, whose scans and protocols edits may be made of."""
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
        write_manifest(out / vendor / "train.csv", [r for r in of_vendor if r.split == "train"])


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


def train(
    out: Path, vendor: str, variant: str, made: dict[str, Path], seed: int, fit: FitConfig
) -> None:
    """One network, unless its Dice is there already."""
    run, base = (out / "runs" / f"{vendor}-{v}-{seed}" for v in (variant, BASE))
    if (run / "bundle.json").exists():
        return
    own, other = (out / v / "manifest.csv" for v in (vendor, OTHER[vendor]))
    augmented = {"oracle": [other]}.get(variant, [])
    if variant in made:
        augmented = [made[variant] / "manifest.csv"]
    augmentation: TissueAugmentation = "plain" if variant == "plain" else "none"
    manifests = Manifests(own, augmented, [own, other])
    config = replace(fit, seed=seed)
    print(f"training {run.name}", flush=True)
    init = None if variant == BASE else base
    train_tissues(manifests, out / "empty", run, config, "cpu", augmentation, init)


def read_dice(out: Path, vendor: str, variant: str, tested: str) -> dict[int, dict[str, Dice]]:
    """By seed and tissue, of the test people of a vendor."""
    found: dict[int, dict[str, Dice]] = {}
    for path in sorted((out / "runs").glob(f"{vendor}-{variant}-*-training/tissues/dice.csv")):
        seed = int(path.parents[1].name.removesuffix("-training").rpartition("-")[2])
        with path.open(newline="") as file:
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
        "| trained on | tested on | variant | seeds | CSF | grey | white | mean | over none | p "
        "| seeds that gain | over base | of the oracle's gain |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for vendor in VENDORS:
        for tested in (vendor, OTHER[vendor]):
            found = {v: read_dice(out, vendor, v, tested) for v in (BASE, *variants)}
            for variant in (v for v in found if found[v]):
                lines.append(_line(vendor, tested, variant, found))
    return "\n".join(lines)


def _line(
    vendor: str, tested: str, variant: str, found: dict[str, dict[int, dict[str, Dice]]]
) -> str:
    own = found[variant]
    means = [np.mean(list(by_person(own, sorted(own), t).values())) for t in (*TISSUES[1:], "mean")]
    cells = [vendor, tested, variant, str(len(own)), *(f"{m:.4f}" for m in means)]
    over_none, over_base = (gains(own, found.get(v, {})) for v in ("none", BASE))
    if variant in ("none", BASE) or not len(over_none):
        cells += ["", "", ""]
    else:
        seeds = over_none.mean(1)
        p = float(stats.wilcoxon(over_none.mean(0)).pvalue) if np.any(over_none) else 1.0
        cells += [gain_text(over_none), f"{p:.1g}", f"{sum(seeds > 0)} of {len(seeds)}"]
    cells.append("" if variant == BASE or not len(over_base) else gain_text(over_base))
    reached, best = "", found.get("oracle", {})
    if variant not in (BASE, "none", "oracle") and tested != vendor:
        shared = {s: own[s] for s in own if s in best and s in found["none"]}
        if shared:
            of = [gains({s: f[s] for s in shared}, found["none"]).mean(0) for f in (own, best)]
            reached = text(ratio_over_people(*of, people(of[0])))
    return f"| {' | '.join([*cells, reached])} |"


def gains(own: dict[int, dict[str, Dice]], over: dict[int, dict[str, Dice]]) -> np.ndarray:
    """(seeds, people) of the mean Dice, of the seeds that both have."""
    seeds = sorted(set(own) & set(over))
    pairs = [(own[s]["mean"], over[s]["mean"]) for s in seeds]
    return np.array([[a[p] - b[p] for p in sorted(b)] for a, b in pairs])


def gain_text(gain: np.ndarray) -> str:
    """Of gains (seeds, people): over people, with its interval."""
    of_people = gain.mean(0)
    return text(over_people(lambda x: x.mean(-1), people(of_people), of_people), "+")


def people(of_people: np.ndarray) -> list[str]:
    return [str(n) for n in range(len(of_people))]


def made_folders(
    given: Sequence[str], parser: argparse.ArgumentParser
) -> dict[str, dict[str, Path]]:
    """'NAME=FROM_A,FROM_B' -> by name, the folder of each vendor."""
    folders: dict[str, dict[str, Path]] = {}
    for entry in given:
        name, _, paths = entry.partition("=")
        parts = paths.split(",")
        if len(parts) != 2 or not name or name in (BASE, *BUILT_IN) or "-" in name:
            parser.error(f"--made {entry}: expected NAME=FROM_A,FROM_B, the name without '-'")
        folders[name] = {"A": Path(parts[0]), "B": Path(parts[1])}
    return folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=60, help="people")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4], help="none: scans")
    parser.add_argument("--steps", type=int, default=TISSUES_FIT.steps, help="of the base")
    parser.add_argument("--more", type=int, default=MORE.steps, help="of those that go on from it")
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
        base, more = replace(TISSUES_FIT, steps=args.steps), replace(MORE, steps=args.more)
        for seed in args.seeds:
            for variant in (BASE, *variants):
                for vendor in VENDORS:
                    folders = {name: folder[vendor] for name, folder in made.items()}
                    fit = base if variant == BASE else more
                    train(args.out, vendor, variant, folders, seed, fit)
    print(table(args.out, variants))


if __name__ == "__main__":
    main()
