"""Real scans of another scanner: a tissue network of IXI's labels on ds002748, with and without
counterfactual protocols. (cDDGM Q3, as far as it can be measured where nobody drew labels.)

    python benchmarks/acquisition_real.py prepare --ixi IXI --other DS002748 --out build/real
    cfgen augment-iap --manifest build/real/train.csv --protocols data_manifests/protocols.toml \\
      --sample 1 --noise own --resolution --out build/real/physics
    python benchmarks/acquisition_real.py train --out build/real

IXI and DS002748 are folders with participants.csv. All scans are stripped by the shipped segmenter.
The networks learn from people of IXI's split train alone; its val is the test at home. On ds002748
two references stand in for labels, neither of them the truth: the shipped segmenter, which learned
any contrast, and ANTs' Atropos (three classes of brightness with a Markov random field), which
learned nothing. Both must agree before a gain means something. IXI's headers are not published: its
protocol is assumed to be the MPRAGE of `ASSUMED`, which moves all renderings alike.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import ants
import numpy as np
import torch
from acquisition_segmentation import BASE, MORE, by_person, read_dice, text
from scipy import stats

from cfgen.bundle import new_bundle, read_bundle, write_card
from cfgen.cli.options import DEFAULT_BUNDLE
from cfgen.config import PREPROCESS, TISSUES_FIT, TissueAugmentation
from cfgen.data.conditions import default_schema
from cfgen.data.manifest import read_manifest, write_manifest
from cfgen.data.table import Row
from cfgen.data.volume import Volume, read_volume, write_like, write_new
from cfgen.jobs.train_tissues import Manifests, train_tissues
from cfgen.measure.segmenter import load_segmenter, segment
from cfgen.metrics.statistics import over_people
from cfgen.nets.segmenter import Segmenter

ASSUMED = {
    "PulseSequenceType": "MPRAGE",
    "MagneticFieldStrength": "1.5",
    "RepetitionTimePreparation": "2.3",
    "InversionTime": "0.9",
    "EchoTime": "0.0046",
    "FlipAngle": "8",
}
REFERENCES = ("segmenter", "atropos")
VARIANTS = ("none", "plain", "physics")
# FreeSurfer's fluid, cortex and white matter, for the classes of Atropos, darkest first.
CLASS_CODES = np.array([0, 24, 3, 2], np.int16)
# Fluid over the cortex is in neither of IXI's labels nor left alike by strippings.
COMPARED = ("grey", "white")
CPU = torch.device("cpu")


def stripped(net: Segmenter, row: Row, out: Path) -> tuple[Volume, np.ndarray]:
    """The brain with its fluid, written to `out`, and the segmenter's label map."""
    scan = read_volume(row.image)
    regions = segment(net, scan, CPU)
    brain = np.where(regions.mask, scan.data, 0).astype(np.float32)
    write_like(scan, brain, out)
    return read_volume(out), regions.labels


def atropos(brain: Volume) -> np.ndarray:
    """FreeSurfer's codes (I, J, K) of three classes of brightness."""
    image = ants.from_numpy(brain.data.astype(np.float32))
    image.set_spacing(tuple(float(s) for s in brain.grid.spacing))
    mask = image.new_image_like((brain.data > 0).astype(np.float32))
    image = ants.n4_bias_field_correction(image, mask=mask, shrink_factor=2)
    found = ants.atropos(image, mask, i="kmeans[3]", m="[0.2,1x1x1]", c="[5,0]")
    return CLASS_CODES[found["segmentation"].numpy().astype(int)]


def prepare(ixi: Path, other: Path, out: Path, trained: int, val: int) -> None:
    """OUT/train.csv and home.csv of IXI; segmenter.csv and atropos.csv of the other scans."""
    net = load_segmenter(read_bundle(DEFAULT_BUNDLE), CPU)
    rows = read_manifest(ixi / "participants.csv", default_schema())
    some = [[r for r in rows if r.split == s][:n] for s, n in (("train", trained), ("val", val))]
    (out / "scans").mkdir(parents=True, exist_ok=True)
    home, away = [], {reference: [] for reference in REFERENCES}
    for row in [r for part in some for r in part]:
        image = out / "scans" / f"{row.subject}_T1w.nii.gz"
        if not image.exists():
            stripped(net, row, image)
        home.append(replace(row, image=image, extra=dict(ASSUMED)))
    for row in read_manifest(other / "participants.csv", default_schema()):
        image = out / "scans" / f"{row.subject}_T1w.nii.gz"
        paths = {r: image.with_name(f"{row.subject}_{r}.nii.gz") for r in REFERENCES}
        if not paths["atropos"].exists():
            image.unlink(missing_ok=True)
            brain, labels = stripped(net, row, image)
            for path, codes in zip(paths.values(), (labels, atropos(brain)), strict=True):
                path.unlink(missing_ok=True)
                # Codes of lobes do not fit in the scan's own uint8.
                write_new(Volume(codes, brain.affine), path, np.int16)
        for reference, path in paths.items():
            away[reference].append(Row(row.subject, image, labels=path, split="test"))
    write_manifest(out / "home.csv", home)
    write_manifest(out / "train.csv", [r for r in home if r.split == "train"])
    for reference, of_reference in away.items():
        write_manifest(out / f"{reference}.csv", of_reference)


def train(out: Path, seeds: Sequence[int], steps: int, more: int) -> None:
    """As benchmarks/acquisition_segmentation.py: a network of IXI, from which all go on."""
    write_card(new_bundle(out / "empty", PREPROCESS, default_schema(), {}), {})
    tests = [out / f"{reference}.csv" for reference in REFERENCES]
    for seed in seeds:
        base = out / "runs" / f"ixi-{BASE}-{seed}"
        for variant in (BASE, *VARIANTS):
            run = out / "runs" / f"ixi-{variant}-{seed}"
            if (run / "bundle.json").exists():
                continue
            made = [out / variant / "manifest.csv"] if variant == "physics" else []
            how: TissueAugmentation = "plain" if variant == "plain" else "none"
            fit = replace(TISSUES_FIT, steps=steps) if run == base else replace(MORE, steps=more)
            init = None if run == base else base
            manifests = Manifests(out / "home.csv", made, tests)
            train_tissues(manifests, out / "empty", run, replace(fit, seed=seed), "cpu", how, init)


def table(out: Path) -> str:
    lines = ["| tested on | variant | seeds | grey | white | gain of the mean | p |"]
    lines.append("|---|---|---|---|---|---|---|")
    for tested in ("val", *REFERENCES):
        found = {v: read_dice(out, "ixi", v, tested) for v in (BASE, *VARIANTS)}
        for variant in (v for v in found if found[v] and found["none"]):
            seeds = sorted(set(found[variant]) & set(found["none"]))
            own = mean_dice(found[variant], seeds)
            cells = [tested, variant, str(len(found[variant]))]
            for tissue in COMPARED:
                values = by_person(found[variant], seeds, tissue).values()
                cells.append(f"{np.mean(list(values)):.4f}")
            base = mean_dice(found["none"], seeds)
            people = sorted(base)
            gain = np.array([own[p] - base[p] for p in people])
            if np.any(gain):
                value = over_people(lambda x: x.mean(-1), people, gain)
                cells += [text(value, "+"), f"{stats.wilcoxon(gain).pvalue:.1g}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def mean_dice(found: dict, seeds: Sequence[int]) -> dict[str, float]:
    """By person, over seeds and the tissues that are compared."""
    parts = [by_person(found, seeds, tissue) for tissue in COMPARED]
    return {p: float(np.mean([part[p] for part in parts])) for p in parts[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("prepare", "train", "table"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ixi", type=Path)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--trained", type=int, default=40, help="people of IXI to learn from")
    parser.add_argument("--val", type=int, default=31)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=TISSUES_FIT.steps, help="of the base")
    parser.add_argument("--more", type=int, default=MORE.steps, help="of those that go on from it")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    if options.stage == "prepare":
        if options.ixi is None or options.other is None:
            parser.error("prepare needs --ixi and --other")
        prepare(options.ixi, options.other, options.out, options.trained, options.val)
    if options.stage == "train":
        train(options.out, options.seeds, options.steps, options.more)
    if options.stage != "prepare":
        print(table(options.out))


if __name__ == "__main__":
    main()
