"""Every figure of edited acquisitions, an edit a line, for benchmarks/acquisition_tables.py.

    python benchmarks/acquisition_measure.py --out build/iap --cohort randomised

First a predictor of the acquisition is trained on the training people (cDDGM, Table 1: what it
reads of test people's own scans is in OUT/measured/COHORT/own.json). Then each file in
OUT/edits/*-COHORT becomes OUT/measured/COHORT/MODEL/SETTING.json, and 'SETTING, locked' beside it
with what the lock lets through: errors against the truth over the brain, in units of the prepared
scan; SSIM to the truth, to the scan and to the scan of the one whose protocol it is; what the
predictor reads; and, of the first people, the region that changed most once the contrast is undone.
Features that probes and distances are of lie in an .npz of the same name. What is there stays.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from acquisition_people import ANOTHER, FEW, Case, People, cases, read, unscaled
from acquisition_scan import Scan, look

from cfgen.bundle import read_bundle
from cfgen.cli.options import DEFAULT_BUNDLE
from cfgen.config import JUDGE_FIT
from cfgen.data.acquisition import NAMES, Protocol, acquisition_conditions
from cfgen.data.acquisition_columns import value_text
from cfgen.data.schema import Schema
from cfgen.data.table import Row
from cfgen.measure.anatomy import volume_changes
from cfgen.measure.judge import Judges, load_judge
from cfgen.measure.segmenter import load_segmenter, soft_volumes
from cfgen.metrics.appearance import appearance
from cfgen.metrics.image import ssim
from cfgen.nets.judge import Judge
from cfgen.nets.segmenter import Segmenter
from cfgen.train.fit import fit
from cfgen.train.judge import JudgeTask, settle
from cfgen.train.judge_data import JudgeData, encode

# Of the training people so many end the training.
VAL = 12
NETWORKS = 2
CPU = torch.device("cpu")
# How an image looks, and what the shipped judge's heads see.
Features = tuple[np.ndarray, np.ndarray]
log = logging.getLogger("cfgen")


def targets_of(protocols: list[Protocol]) -> Schema:
    """What differs between protocols, numbers first."""
    told = acquisition_conditions([unscaled(p) for p in protocols]).variables
    variables = (replace(v, added=False) for v in told if v.name in NAMES)
    return Schema(tuple(sorted(variables, key=lambda v: v.kind == "categorical")))


def judge_data(people: People, targets: Schema, some: slice) -> JudgeData:
    rows = [
        Row(str(n), Path(), extra={k: value_text(v) for k, v in unscaled(p["protocol"]).items()})
        for n, p in enumerate(people.table)
    ][some]
    encoded = torch.from_numpy(np.stack([encode(targets, row) for row in rows]))
    return JudgeData(torch.from_numpy(np.array(people.images[some])), encoded, rows)


def acquisition_judge(out: Path, cohort: str) -> Judges:
    people = read(out / cohort)
    targets = targets_of([people.protocol(n) for n in range(VAL, len(people.table))])
    train, val = (judge_data(people, targets, s) for s in (slice(VAL, None), slice(VAL)))
    nets = []
    for seed in range(NETWORKS):
        config = replace(JUDGE_FIT, seed=seed)
        task = JudgeTask(targets, train, val, CPU, config)
        net = fit(task, config, out / "runs" / f"judge-{cohort}-{seed}", shared=False)
        assert isinstance(net, Judge)
        settle(net, train.images, CPU)
        nets.append(net.eval())
    return Judges(tuple(nets), targets, CPU)


@dataclass(frozen=True)
class Tools:
    judge: Judges
    features: Judges
    segmenter: Segmenter

    def seen(self, image: np.ndarray) -> tuple[dict, Features]:
        """What the predictor reads of an image, and its features."""
        guess = {k: np.atleast_1d(v[0]).tolist() for k, v in self.judge.judge(image[None]).items()}
        return guess, (appearance(image, image > 0), self.features.embed(image[None])[0])


def measure(out: Path, cohort: str, tools: Tools) -> None:
    people, folder = read(out / f"{cohort}-test"), out / "measured" / cohort
    asked, scans = cases(people), {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, some in (("training", read(out / cohort)), ("own", people)):
        own = [n for n, line in enumerate(some.table) if not line.get("target")]
        seen = [tools.seen(some.image(n).numpy()) for n in own] if is_new(folder / name) else []
        lines = [
            {"person": some.table[n].get("person", n), "protocol": unscaled(some.protocol(n))}
            | {"read": s[0]}
            for n, s in zip(own, seen, strict=bool(seen))
        ]
        keep(folder / name, lines, [s[1] for s in seen])
    for path in sorted((out / "edits").glob(f"*-{cohort}/*.npy")):
        model = path.parent.name.removesuffix(f"-{cohort}")
        variants = ("",) if model == "beside" else ("", ", locked")
        targets = [folder / model / f"{path.stem}{v}" for v in variants]
        if path.stem.endswith(".part") or not any(is_new(t) for t in targets):
            continue
        images = np.load(path, mmap_mode="r")
        found: list[list] = [[] for _ in variants]
        for case, guess in zip(asked, images, strict=False):
            if np.isnan(guess).any():
                continue
            if case.person not in scans:
                scans[case.person] = look(tools.segmenter, people.image(case.scan))
            for line, variant in zip(found, variants, strict=True):
                line.append(of_edit(tools, people, case, scans[case.person], guess, bool(variant)))
        for target, lines in zip(targets, found, strict=True):
            keep(target, [line for line, _ in lines], [features for _, features in lines])
        log.info("%s %s", model, path.stem)


def is_new(target: Path) -> bool:
    return not target.with_name(target.name + ".json").exists()


def keep(target: Path, lines: list[dict], features: list[Features]) -> None:
    if not lines:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    looks, embedded = (np.stack(f) for f in zip(*features, strict=True))
    np.savez(target.with_name(target.name + ".npz"), appearance=looks, embedding=embedded)
    target.with_name(target.name + ".json").write_text(json.dumps(lines))


def of_edit(
    tools: Tools, people: People, case: Case, scan: Scan, guess: np.ndarray, lock: bool
) -> tuple[dict, Features]:
    image, truth = scan.volume.data, people.image(case.truth).numpy()
    # Without the lock, too, a change reaches the brain alone.
    edited = np.where(scan.brain, guess, 0).astype(np.float32)
    contrast = scan.contrast(edited)
    if lock:
        edited = scan.locked(contrast).astype(np.float32)
    brain = (truth > 0) & scan.brain
    error, nothing = (edited - truth)[brain], (image - truth)[brain]
    line = {
        "person": case.person,
        "target": case.target,
        "protocol": unscaled(people.protocol(case.truth)),
        "own": unscaled(people.protocol(case.scan)),
        "mae": float(np.abs(error).mean()),
        "bias": float(error.mean()),
        "nothing": float(np.abs(nothing).mean()),
        "ssim": ssim(edited, truth, brain),
        "ssim_scan": ssim(edited, image, scan.brain),
        "explained": contrast.explained,
    }
    if case.target == ANOTHER:
        line["ssim_shuffled"] = of_owner(people, case, edited)
    if case.person < FEW:
        again = soft_volumes(tools.segmenter, scan.undone(contrast, edited), CPU)
        line["worst"] = max(abs(c.percent) for c in volume_changes(scan.volumes, again))
    line["read"], features = tools.seen(edited)
    return line, features


def of_owner(people: People, case: Case, edited: np.ndarray) -> float:
    """SSIM to the scan of the one whose protocol it is."""
    protocol = unscaled(people.protocol(case.truth))
    for n, line in enumerate(people.table):
        if not line["target"] and unscaled(people.protocol(n)) == protocol:
            other = people.image(n).numpy()
            return ssim(edited, other, (edited > 0) | (other > 0))
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cohort", default="randomised")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    shipped = read_bundle(DEFAULT_BUNDLE)
    judge = acquisition_judge(options.out, options.cohort)
    tools = Tools(judge, load_judge(shipped, CPU), load_segmenter(shipped, CPU))
    measure(options.out, options.cohort, tools)


if __name__ == "__main__":
    main()
