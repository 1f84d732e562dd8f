"""A judge of simulated brains for benchmarks/cycle.py: it reads age and sex in an image.

    python benchmarks/cycle_judge.py --out build/cycle

One network of cfgen's judge, trained on the train people. Prints its own errors on people of whom
all is known: no model can do better by it.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from cycle_autoencoder import rows_of
from cycle_latents import AUTOENCODER
from cycle_people import People, read_people
from torch import Tensor

from cfgen.bundle import copy_bundle, net_config, read_bundle, write_part
from cfgen.config import JUDGE_FIT
from cfgen.data.conditions import Schema, default_schema, fit_schema
from cfgen.measure.judge import Judges, load_judge, pack
from cfgen.nets.judge import Judge
from cfgen.train.fit import fit
from cfgen.train.judge import JudgeTask, judge_config, settle
from cfgen.train.judge_data import JudgeData, encode
from cfgen.train.record import trained_on

CPU = torch.device("cpu")


def judge_data(people: People, split: str, targets: Schema) -> JudgeData:
    rows = rows_of(people, split)
    encoded = torch.from_numpy(np.stack([encode(targets, row) for row in rows]))
    return JudgeData(torch.from_numpy(people.images[people.rows(split)]), encoded, rows)


def train_judge(out: Path, seed: int) -> None:
    """One network of the judge on simulated train brains, as a part of OUT/judge."""
    people = read_people(out)
    targets = fit_schema(rows_of(people, "train"), default_schema())
    train, val = (judge_data(people, split, targets) for split in ("train", "val"))
    config = replace(JUDGE_FIT, seed=seed)
    task = JudgeTask(targets, train, val, CPU, config)
    net = fit(task, config, out / "judge-training" / f"{len(train.rows)}-seed{seed}")
    assert isinstance(net, Judge)
    settle(net, train.images, CPU)
    config_net = judge_config(targets, train.images.shape[1:])
    source = read_bundle(out / AUTOENCODER)
    bundle = replace(source, parts={}, schema=targets)
    bundle = copy_bundle(bundle, out / "judge")
    about = {**net_config(config_net), "seeds": 1, "targets": targets.to_json(), "val": {}}
    bundle = write_part(bundle, "judge", pack([net]), about, trained_on(train.rows, config))
    judges = load_judge(bundle, CPU)
    for split in ("val", "test"):
        rows = people.rows(split)
        if len(rows):
            print(split, reading(judges, torch.from_numpy(people.images[rows]), people, rows))


def reading(judges: Judges, images: Tensor, people: People, rows: np.ndarray) -> dict[str, float]:
    """The judge's error on brains of which all is known."""
    guess = judges.judge(images)
    age, male = people.column("age", rows), people.column("male", rows)
    right = (guess["sex"] > 0.5) == (male == 0)
    return figures(age, guess["age"]) | {"sex": float(right.mean()), "n": len(rows)}


def figures(asked: np.ndarray, read: np.ndarray) -> dict[str, float]:
    slope = np.cov(asked, read)[0, 1] / asked.var(ddof=1)
    r = np.corrcoef(asked, read)[0, 1]
    return {"slope": float(slope), "r": float(r), "mae": float(np.abs(asked - read).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    train_judge(options.out, options.seed)


if __name__ == "__main__":
    main()
