"""Age and sex read out of the brains of benchmarks/cycle.py by a judge of simulated brains.

    python benchmarks/cycle_table.py judge --out build/cycle
    python benchmarks/cycle_table.py table --out build/cycle --names plain more cycle

`sheet --names plain` draws brains of nobody at eight ages. `--made vae-gan` adds a baseline whose
brains cycle_gan.py or cycle_ar.py wrote; without --names the table is of these alone.

`judge` trains one network of the judge on the train people. `table` makes new brains of 20 to 90
years and counterfactuals of test people with each bundle, and prints slope, correlation and error
of the age that is read on the age that was asked for. The first lines are the judge's own on test
brains as they are, and through the autoencoder: no model can do better.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cycle_autoencoder import rows_of
from cycle_brains import other_ages, spaced
from cycle_latents import latents_of
from cycle_people import People, read_people
from torch import Tensor

from cfgen.bundle import copy_bundle, net_config, read_bundle, write_part
from cfgen.config import JUDGE_FIT, Edit
from cfgen.data.conditions import Schema, default_schema, fit_schema
from cfgen.diffusion.samplers import denoise_ddim
from cfgen.diffusion.schedule import time_grid
from cfgen.edit.latent import Models, edit_latent, load_models
from cfgen.measure.judge import Judges, load_judge, pack
from cfgen.nets.condition import Condition
from cfgen.nets.judge import Judge
from cfgen.streams import Purpose, torch_stream
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
    source = read_bundle(out / "autoencoder-folded-32")
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


def generated(
    models: Models, c: Tensor, steps: int, guidance: float, seed: int, *, one_noise: bool = False
) -> Tensor:
    """New latents, one for each condition, by DDIM from a noise of its own, or from one for all."""
    shape = models.latent_mean.coefficients.shape[1:]
    subjects = [0] * len(c) if one_noise else range(len(c))
    noise = [torch.randn(shape, generator=torch_stream(seed, Purpose.SAMPLES, n)) for n in subjects]
    times = time_grid(steps, models.schedule.T)
    made = []
    with torch.inference_mode():
        for zt, some in zip(torch.stack(noise).split(8), c.split(8), strict=True):
            denoiser = models.denoiser(Condition(some), guidance)
            r = denoise_ddim(denoiser, models.schedule, zt, times)
            made.append(models.latent_mean.latent(r, some))
    return torch.cat(made)


def table(
    out: Path, names: list[str], split: str, n: int, people_n: int, edit: Edit, steps: int
) -> list[dict]:
    """A line for each bundle and task."""
    people, judges = read_people(out), load_judge(read_bundle(out / "judge"), CPU)
    latents, numbers = latents_of(out, split)
    latents, numbers = latents[:people_n, 0].float(), numbers[:people_n]
    real = np.array(numbers)
    images = torch.from_numpy(people.images[real])
    first = load_models(read_bundle(out / names[0]), CPU)
    decoded = torch.cat([first.decode(z[None])[:, 0] for z in latents])
    lines = [
        {"what": "real", "task": split} | reading(judges, images, people, real),
        {"what": "autoencoder", "task": split} | reading(judges, decoded, people, real),
    ]
    values = [people.values(n) for n in numbers]
    asked = list(zip(latents, values, strict=True))
    for name in names:
        bundle = read_bundle(out / name)
        models, schema = load_models(bundle, CPU), bundle.schema
        made = direct(models, schema, judges, n, steps, edit.guidance)
        found = [made, *counterfactuals(models, schema, judges, asked, edit)]
        lines += [{"what": name} | line for line in found]
    return lines


def made_table(out: Path, names: list[str]) -> list[dict]:
    """The same lines of the brains that baselines wrote (cycle_brains.py)."""
    judges = load_judge(read_bundle(out / "judge"), CPU)
    lines = []
    for name in names:
        with np.load(out / name / "direct.npz") as made:
            found = [direct_line(made["age"], made["female"], judged(judges, made["images"]))]
        changed = out / name / "changed.npz"
        if changed.exists():
            with np.load(changed) as made:
                age = judged(judges, made["images"])["age"]
                found += changed_lines(made["person"], made["age"], made["delta"], age)
        lines += [{"what": name} | line for line in found]
    return lines


def judged(judges: Judges, images: np.ndarray) -> dict[str, np.ndarray]:
    return judges.judge(torch.from_numpy(images))


def changed_lines(
    person: np.ndarray, age: np.ndarray, delta: np.ndarray, read: np.ndarray
) -> list[dict]:
    """How far the age that is read moves against how far it was asked to, from what is read in the
    image that the model gives back (delta 0); and the age that is read against that asked for."""
    back = {n: a for n, a, d in zip(person, read, delta, strict=True) if d == 0}
    moved = delta != 0
    change = read[moved] - np.array([back[n] for n in person[moved]])
    people = {"n": len(back)}
    return [
        {"task": "counterfactual change"} | figures(delta[moved], change),
        {"task": "counterfactual age"} | figures(age[moved], read[moved]) | people,
    ]


def counterfactuals(
    models: Models,
    schema: Schema,
    judges: Judges,
    people: list[tuple[Tensor, dict[str, Any]]],
    edit: Edit,
) -> list[dict]:
    """How far the read age moves, against how far it was asked to, beside the reconstruction's."""
    person, asked, delta, read = [], [], [], []
    for number, (z0, values) in enumerate(people):
        ages, images = changed(models, schema, z0, values, edit)
        read += list(judges.judge(images)["age"])
        person += [number] * len(ages)
        asked += ages
        delta += [a - ages[0] for a in ages]
    return changed_lines(*map(np.array, (person, asked, delta, read)))


def changed(
    models: Models, schema: Schema, z0: Tensor, values: dict[str, Any], edit: Edit
) -> tuple[list[float], Tensor]:
    """A person of latent `z0` (C, d, h, w) at other ages: the ages, their own first, and images
    (1 + J, D, H, W), the first as the model gives the scan back."""
    ages = [values["age"], *other_ages(schema, values["age"])]
    vectors = [schema.encode(values | {"age": age}) for age in ages]
    own, *others = [Condition(torch.from_numpy(v)[None]) for v in vectors]
    made = edit_latent(models, z0[None], own, others, edit)
    images = [models.decode(z)[:, 0] for z in (made.reconstruction, *made.counterfactuals)]
    return ages, torch.cat(images)


def direct(
    models: Models, schema: Schema, judges: Judges, n: int, steps: int, guidance: float
) -> dict:
    """The age and sex that are read in `n` brains of nobody."""
    images, ages, female = new_brains(models, schema, n, steps, guidance)
    return direct_line(ages, female, judges.judge(images))


def new_brains(
    models: Models, schema: Schema, n: int, steps: int, guidance: float
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Images (n, D, H, W) of nobody, the ages that were asked for, and who is female."""
    c, ages, female = spaced(schema, n)
    latents = generated(models, c, steps, guidance, 0)
    return torch.cat([models.decode(z[None])[:, 0] for z in latents]), ages, female


def direct_line(ages: np.ndarray, female: np.ndarray, guess: dict[str, np.ndarray]) -> dict:
    right = float(((guess["sex"] > 0.5) == (female == 1)).mean())
    return {"task": "direct"} | figures(ages, guess["age"]) | {"sex": right, "n": len(ages)}


def sheet(out: Path, names: list[str], steps: int, guidance: float, seed: int) -> None:
    """OUT/sheet-NAME.png: brains of nobody, all of one noise, at eight ages from left to right;
    an axial and a coronal slice through the ventricles."""
    from matplotlib.image import imsave

    for name in names:
        bundle = read_bundle(out / name)
        models = load_models(bundle, CPU)
        low, high = bundle.schema.variable("age").support
        asked = [{"age": age, "sex": "F"} for age in np.linspace(low, high, 8)]
        c = torch.from_numpy(np.stack([bundle.schema.encode(v) for v in asked]))
        new = generated(models, c, steps, guidance, seed, one_noise=True)
        images = torch.cat([models.decode(z[None])[0] for z in new])
        axial = [x[:, :, 46].T.flip(0) for x in images]
        coronal = [x[:, 52, :].T.flip(0) for x in images]
        rows = torch.cat([torch.cat(axial, 1), torch.cat(coronal, 1)])
        imsave(out / f"sheet-{name}.png", rows.numpy(), cmap="gray", vmin=0, vmax=1.1)


def show(lines: list[dict], path: Path) -> None:
    for entry in lines:
        print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in entry.items()}))
    with path.open("w", newline="") as file:
        columns = dict.fromkeys(k for entry in lines for k in entry)
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("judge", "table", "sheet"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--names", nargs="*", default=[])
    parser.add_argument("--made", nargs="*", default=[], help="Baselines that wrote their brains.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, default=40, help="New brains.")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--people", type=int, default=30, help="Test people who are changed.")
    parser.add_argument("--sampling", type=int, default=50, help="DDIM steps of a new brain.")
    parser.add_argument("--inversion", type=int, default=25, help="DDIM steps there, and back.")
    parser.add_argument("--depth", type=float, default=1.0)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--file", default="table.csv", help="Where the lines are kept, below OUT.")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    if options.stage == "judge":
        train_judge(options.out, options.seed)
        return
    if options.stage == "sheet":
        sheet(options.out, options.names, options.sampling, options.guidance, options.seed)
        return
    edit = Edit(steps=options.inversion, depth=options.depth, guidance=options.guidance)
    lines: list[dict] = []
    if options.names:
        lines += table(
            options.out,
            options.names,
            options.split,
            options.n,
            options.people,
            edit,
            options.sampling,
        )
    show(lines + made_table(options.out, options.made), options.out / options.file)


if __name__ == "__main__":
    main()
