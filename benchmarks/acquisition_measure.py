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
from acquisition_people import ANOTHER, FEW, VAL, Case, People, cases, read, unscaled
from acquisition_scan import Scan, look

from cfgen.bundle import read_bundle
from cfgen.cli.options import DEFAULT_BUNDLE
from cfgen.config import JUDGE_FIT
from cfgen.data.acquisition import NAMES, Protocol, acquisition_conditions
from cfgen.data.acquisition_columns import value_text
from cfgen.data.schema import Schema
from cfgen.data.table import Row
from cfgen.edit.lock import IntensityMap
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
        if is_new(folder / name):
            keep(folder / name, of_scans(tools, some))
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
            scan = scans[case.person]
            # Without the lock, too, a change reaches the brain alone.
            edited = np.where(scan.brain, guess, 0).astype(np.float32)
            contrast = scan.contrast(edited)
            images_of = (edited, scan.locked(contrast).astype(np.float32))
            for lines, image in zip(found, images_of, strict=False):
                lines.append(of_edit(tools, people, case, scan, image, contrast))
        for target, lines in zip(targets, found, strict=True):
            keep(target, lines)
        log.info("%s %s", model, path.stem)


def is_new(target: Path) -> bool:
    return not target.with_name(target.name + ".json").exists()


def keep(target: Path, found: list[tuple[dict, Features]]) -> None:
    if not found:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    lines, features = zip(*found, strict=True)
    looks, embedded = (np.stack(f) for f in zip(*features, strict=True))
    np.savez(target.with_name(target.name + ".npz"), appearance=looks, embedding=embedded)
    target.with_name(target.name + ".json").write_text(json.dumps(lines))


def of_scans(tools: Tools, people: People) -> list[tuple[dict, Features]]:
    """Of everybody's own scan."""
    found = []
    for n, line in enumerate(people.table):
        if not line.get("target"):
            guess, features = tools.seen(people.image(n).numpy())
            about = {"person": line.get("person", n), "protocol": unscaled(people.protocol(n))}
            found.append((about | {"read": guess}, features))
    return found


def of_edit(
    tools: Tools,
    people: People,
    case: Case,
    scan: Scan,
    edited: np.ndarray,
    contrast: IntensityMap,
) -> tuple[dict, Features]:
    """`contrast` is the map that explains the edit's change, or was let through of it."""
    image, truth = scan.volume.data, people.image(case.truth).numpy()
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
        owner = people.owner(case)
        if owner is not None:
            other = people.image(owner).numpy()
            line["ssim_shuffled"] = ssim(edited, other, (edited > 0) | (other > 0))
    if case.person < FEW:
        again = soft_volumes(tools.segmenter, scan.undone(contrast, edited), CPU)
        line["worst"] = max(abs(c.percent) for c in volume_changes(scan.volumes, again))
    line["read"], features = tools.seen(edited)
    return line, features


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
