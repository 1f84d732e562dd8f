"""Latent diffusion and cycle fine-tuning on simulated people, stage by stage.

    python benchmarks/cycle_people.py --out build/cycle
    python benchmarks/cycle_autoencoder.py --out build/cycle
    python benchmarks/cycle.py judge --out build/cycle
    python benchmarks/cycle.py latents --out build/cycle
    python benchmarks/cycle.py ldm --out build/cycle --name plain --steps 20000
    python benchmarks/cycle.py more --out build/cycle --name more --source plain --steps 2000
    python benchmarks/cycle.py cycle --out build/cycle --name cycle --source plain --steps 2000
    python benchmarks/cycle.py table --out build/cycle --names plain more cycle

`ldm` trains a model whose latent mean has no conditions, unless --latent-mean; `more` goes on with
plain steps, as many as `cycle` takes of its own, at the same rate. `table` reads age and sex out of
new brains and of counterfactuals with the judge, beside its error on real (simulated) test brains.
Every stage goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from cycle_autoencoder import rows_of
from cycle_people import People, read_people
from torch import Tensor

from cfgen.bundle import copy_bundle, half, net_config, read_bundle, write_part
from cfgen.causal.latent_mean import LatentMean
from cfgen.config import JUDGE_FIT, LATENT_DIFFUSION_FIT, Edit, FitConfig
from cfgen.data.conditions import Schema, default_schema, fit_schema
from cfgen.diffusion.samplers import denoise_ddim
from cfgen.diffusion.schedule import time_grid
from cfgen.edit.latent import Models, edit_latent, load_autoencoder, load_models
from cfgen.measure.judge import Judges, load_judge, pack
from cfgen.nets.condition import Condition
from cfgen.nets.judge import Judge
from cfgen.streams import Purpose, torch_stream
from cfgen.train.cohort import splined
from cfgen.train.fit import fit
from cfgen.train.judge import JudgeTask, judge_config, settle
from cfgen.train.judge_data import JudgeData, encode
from cfgen.train.latent_diffusion import (
    LATENT_DIFFUSION,
    LatentDiffusionConfig,
    LatentDiffusionTask,
    schedule_for,
    unet_config,
)
from cfgen.train.latents import LatentData, age_reader, cached_views, fit_mean
from cfgen.train.record import trained_on

CPU = torch.device("cpu")
CHUNK, VIEWS = 100, 3
HELD_OUT = 24
log = logging.getLogger("cfgen")


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


def encode_all(out: Path, autoencoder: Path) -> None:
    """Chunks of a hundred people; those who are not there yet are left for the next time."""
    people = read_people(out)
    net = load_autoencoder(read_bundle(autoencoder), CPU)
    for split, views in (("val", 1), ("test", 1), ("train", VIEWS)):
        numbers = [n for n, p in enumerate(people.table) if p["split"] == split]
        for start in range(0, len(numbers), CHUNK):
            chunk = numbers[start : start + CHUNK]
            if any(people.table[n]["made"] == "0" for n in chunk):
                break
            images = torch.from_numpy(people.images[chunk[0] : chunk[-1] + 1])
            path = out / "latents" / f"{split}-{start // CHUNK:02d}.npy"
            cached_views(net, images, views, CPU, chunk[0], path)


def latents_of(out: Path, split: str) -> tuple[Tensor, list[int]]:
    """(N, views, C, d, h, w) float16 of a split, and the people's numbers."""
    people = read_people(out)
    numbers = [n for n, p in enumerate(people.table) if p["split"] == split]
    paths = sorted((out / "latents").glob(f"{split}-*.npy"))
    whole = torch.cat([torch.from_numpy(np.load(p)) for p in paths])
    numbers = numbers[: len(whole)]
    kept = [k for k, n in enumerate(numbers) if people.table[n]["made"] == "1"]
    return whole[kept], [numbers[k] for k in kept]


def conditions_of(people: People, schema: Schema, numbers: list[int]) -> Tensor:
    values = [
        {
            "age": float(people.table[n]["age"]),
            "sex": "M" if float(people.table[n]["male"]) else "F",
        }
        for n in numbers
    ]
    return torch.from_numpy(np.stack([schema.encode(v) for v in values]))


def data_of(out: Path, schema: Schema) -> LatentData:
    people = read_people(out)
    latents, numbers = latents_of(out, "train")
    held_out, others = latents_of(out, "val")
    log.info("%d people to learn from", len(numbers))
    return LatentData(
        latents,
        conditions_of(people, schema, numbers),
        torch.ones(len(numbers)),
        held_out[:HELD_OUT, 0],
        conditions_of(people, schema, others[:HELD_OUT]),
    )


def by_one_sigma(mean: LatentMean) -> LatentMean:
    """Channels keep their sizes beside each other: the first ones, in which age is, count more."""
    return replace(mean, sigma=mean.sigma.square().mean().sqrt().expand_as(mean.sigma).clone())


def train_ldm(
    out: Path,
    name: str,
    config: FitConfig,
    how: LatentDiffusionConfig,
    source: str | None,
    one_sigma: bool,
) -> None:
    """A bundle OUT/NAME with a latent mean and a UNet, from the weights of `source` where given."""
    people = read_people(out)
    bundle = read_bundle(out / (source or "autoencoder-folded-32"))
    schema = fit_schema(rows_of(people, "train"), default_schema())
    if source:
        schema = bundle.schema
    data = data_of(out, schema)
    reader = age_reader(schema, data)
    assert reader is not None
    log.info("reader of age, left out: error %.3f, slope %.3f", reader.error, reader.slope)
    if source:
        models = load_models(bundle, CPU)
        mean = models.latent_mean
    else:
        mean = fit_mean(
            data.latents, data.conditions, data.weights, splined(schema), how.latent_mean
        )
        mean = by_one_sigma(mean) if one_sigma else mean
    task = LatentDiffusionTask(data, mean, CPU, config, how, reader)
    if source:
        task.net.load_state_dict(models.unet.state_dict())
    net = fit(task, config, out / "runs" / name)
    copied = copy_bundle(replace(bundle, schema=schema), out / name)
    conditional = {"conditional": how.latent_mean}
    copied = write_part(copied, "latent_mean", mean.tensors(), conditional, {})
    network = unet_config(data.conditions.shape[1], data.shape, how)
    about = net_config(network) | {"schedule": asdict(how.schedule)}
    about |= {"loss_weights": how.loss_weights}
    write_part(copied, "unet", half(net), about, trained_on(rows_of(people, "train"), config))


# Settings that are compared on a small network: name -> changes of the first.
PAIRS: dict[str, dict] = {
    "both": {},
    "both, one sigma": {"one_sigma": True},
    "both, no positions": {"positions": False},
    "attention, no positions": {"conditioning": "attention", "positions": False},
    "attention": {"conditioning": "attention"},
    "norm": {"conditioning": "norm"},
    "both, min-snr": {"loss_weights": "min-snr"},
    "both, eps": {"schedule": schedule_for("eps")},
    "both, eps, min-snr": {"schedule": schedule_for("eps"), "loss_weights": "min-snr"},
}


def pairs(out: Path, config: FitConfig, how: LatentDiffusionConfig) -> None:
    """Each setting with the same steps, latents and seed; reports in OUT/runs/pairs."""
    schema = fit_schema(rows_of(read_people(out), "train"), default_schema())
    data = data_of(out, schema)
    reader = age_reader(schema, data)
    mean = fit_mean(data.latents, data.conditions, data.weights, splined(schema), False)
    for name, changes in PAIRS.items():
        changes = dict(changes)
        scaled = by_one_sigma(mean) if changes.pop("one_sigma", False) else mean
        task = LatentDiffusionTask(data, scaled, CPU, config, replace(how, **changes), reader)
        folder = out / "runs" / "pairs" / name.replace(", ", "-").replace(" ", "-")
        fit(task, config, folder)
        with (folder / "report.csv").open(newline="") as file:
            for line in csv.DictReader(file):
                print(name, line, flush=True)


def generated(models: Models, c: Tensor, steps: int, guidance: float, seed: int) -> Tensor:
    """New latents, one for each condition, by DDIM from the noise of its own seed."""
    shape = models.latent_mean.coefficients.shape[1:]
    noise = [
        torch.randn(shape, generator=torch_stream(seed, Purpose.SAMPLES, n)) for n in range(len(c))
    ]
    times = time_grid(steps, models.schedule.T)
    made = []
    with torch.inference_mode():
        for zt, some in zip(torch.stack(noise).split(8), c.split(8), strict=True):
            denoiser = models.denoiser(Condition(some), guidance)
            r = denoise_ddim(denoiser, models.schedule, zt, times)
            made.append(models.latent_mean.latent(r, some))
    return torch.cat(made)


def spaced(schema: Schema, n: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Conditions of `n` brains of nobody: ages 20 to 90, either sex in turn."""
    ages = np.linspace(20, 90, n)
    female = np.arange(n) % 2
    sexes = ["F" if f else "M" for f in female]
    vectors = [schema.encode({"age": a, "sex": s}) for a, s in zip(ages, sexes, strict=True)]
    return torch.from_numpy(np.stack(vectors)), ages, female


DELTAS = (-30, -10, 10, 30)


def table(out: Path, names: list[str], n: int, people_n: int, edit: Edit, steps: int) -> None:
    """Prints, and keeps in OUT/table.csv, a line for each bundle and task."""
    people, judges = read_people(out), load_judge(read_bundle(out / "judge"), CPU)
    latents, numbers = latents_of(out, "test")
    latents, numbers = latents[:people_n, 0].float(), numbers[:people_n]
    real = np.array(numbers)
    lines = [
        {"what": "real", "task": "test brains"}
        | reading(judges, torch.from_numpy(people.images[real]), people, real)
    ]
    first = load_models(read_bundle(out / names[0]), CPU)
    decoded = torch.cat([first.decode(z[None])[:, 0] for z in latents])
    lines.append(
        {"what": "autoencoder", "task": "test brains"} | reading(judges, decoded, people, real)
    )
    for name in names:
        bundle = read_bundle(out / name)
        models = load_models(bundle, CPU)
        c, ages, female = spaced(bundle.schema, n)
        new = generated(models, c, steps, edit.guidance, 0)
        guess = judges.judge(torch.cat([models.decode(z[None])[:, 0] for z in new]))
        right = float(((guess["sex"] > 0.5) == (female == 1)).mean())
        lines.append(
            {"what": name, "task": "direct"} | figures(ages, guess["age"]) | {"sex": right}
        )
        lines += counterfactuals(
            models, bundle.schema, judges, people, latents, numbers, edit, name
        )
        for entry in lines:
            print(
                json.dumps(
                    {k: round(v, 3) if isinstance(v, float) else v for k, v in entry.items()}
                )
            )
    with (out / "table.csv").open("w", newline="") as file:
        columns = dict.fromkeys(k for entry in lines for k in entry)
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(lines)


def counterfactuals(
    models: Models,
    schema: Schema,
    judges: Judges,
    people: People,
    latents: Tensor,
    numbers: list[int],
    edit: Edit,
    name: str,
) -> list[dict]:
    """How far the read age moves, against how far it was asked to, beside the reconstruction's."""
    asked, read, target, found = [], [], [], []
    for z0, number in zip(latents, numbers, strict=True):
        age = float(people.table[number]["age"])
        sex = "M" if float(people.table[number]["male"]) else "F"
        deltas = [d for d in DELTAS if 20 <= age + d <= 90]

        def condition(a: float, sex: str = sex) -> Condition:
            return Condition(torch.from_numpy(schema.encode({"age": a, "sex": sex}))[None])

        made = edit_latent(
            models, z0[None], condition(age), [condition(age + d) for d in deltas], edit
        )
        images = [models.decode(z)[:, 0] for z in (made.reconstruction, *made.counterfactuals)]
        guess = judges.judge(torch.cat(images))["age"]
        asked += deltas
        read += list(guess[1:] - guess[0])
        target += [age + d for d in deltas]
        found += list(guess[1:])
    change = figures(np.array(asked, float), np.array(read))
    after = figures(np.array(target), np.array(found))
    return [
        {"what": name, "task": "counterfactual change"} | change,
        {"what": name, "task": "counterfactual age"} | after | {"n": len(numbers)},
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("judge", "latents", "pairs", "ldm", "more", "table"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name")
    parser.add_argument("--names", nargs="*", default=[])
    parser.add_argument("--source")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=LATENT_DIFFUSION_FIT.learning_rate)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--report-every", type=int, default=500)
    parser.add_argument("--prediction", choices=("v", "eps"), default="v")
    parser.add_argument("--loss-weights", choices=("uniform", "min-snr"), default="uniform")
    parser.add_argument("--conditioning", choices=("attention", "norm", "both"), default="both")
    parser.add_argument("--no-positions", action="store_true")
    parser.add_argument("--latent-mean", action="store_true")
    parser.add_argument("--one-sigma", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ema", type=float, default=LATENT_DIFFUSION_FIT.ema_decay)
    parser.add_argument("--channels", type=int, nargs="+")
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--people", type=int, default=30)
    parser.add_argument("--sampling", type=int, default=50)
    parser.add_argument("--depth", type=float, default=1.0)
    parser.add_argument("--guidance", type=float, default=1.0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    out: Path = options.out
    config = replace(
        LATENT_DIFFUSION_FIT,
        steps=options.steps,
        learning_rate=options.rate,
        batch_size=options.batch,
        report_every=options.report_every,
        ema_decay=options.ema,
        seed=options.seed,
    )
    how = replace(
        LATENT_DIFFUSION,
        schedule=schedule_for(options.prediction),
        loss_weights=options.loss_weights,
        conditioning=options.conditioning,
        positions=not options.no_positions,
        latent_mean=options.latent_mean,
        channels=tuple(options.channels) if options.channels else None,
    )
    if options.stage == "judge":
        train_judge(out, options.seed)
    elif options.stage == "latents":
        encode_all(out, out / "autoencoder-folded-32")
    elif options.stage == "pairs":
        pairs(out, config, how)
    elif options.stage in ("ldm", "more"):
        train_ldm(out, options.name, config, how, options.source, options.one_sigma)
    else:
        edit = Edit(steps=25, depth=options.depth, guidance=options.guidance)
        table(out, options.names, options.n, options.people, edit, options.sampling)


if __name__ == "__main__":
    main()
