"""Latent diffusion and cycle fine-tuning on simulated people, stage by stage.

    python benchmarks/cycle_people.py --out build/cycle            # twenty minutes a thousand
    python benchmarks/cycle_autoencoder.py --out build/cycle --steps 0
    python benchmarks/cycle_latents.py --out build/cycle
    python benchmarks/cycle_judge.py --out build/cycle
    python benchmarks/cycle.py pairs --out build/cycle --steps 600 --channels 32 64 --ema 0.98 \
        --shift 8 --latent-scale voxel --rate 1e-3
    python benchmarks/cycle.py ldm --out build/cycle --name plain --steps 20000
    python benchmarks/cycle.py more --out build/cycle --name more --source plain --steps 2000
    python benchmarks/cycle.py cycle --out build/cycle --name cycle --source plain --steps 2000
    python benchmarks/cycle_mean.py --out build/cycle
    python benchmarks/cycle_compare.py make --out build/cycle --names real copy ridge more cycle
    python benchmarks/cycle_compare.py table --out build/cycle --control more --names ridge cycle

`pairs` compares settings on a small network. `ldm` trains a model whose latent mean has no
conditions, unless --latent-mean; `more` goes on with plain steps, `cycle` with steps of the cycle,
as many at the same rate; with --mean plain or conditional on what a mean of their own latents
leaves over, in place of the source's. Every stage goes on where it was interrupted. cycle_gan.py
and cycle_ar.py are what CDM compares with.
"""

from __future__ import annotations

import argparse
import csv
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from cycle_autoencoder import rows_of
from cycle_brains import add_fit_options, fit_of
from cycle_latents import AUTOENCODER, conditions_of, latents_of
from cycle_people import read_people
from paced import fit_within

from cfgen.bundle import Bundle, copy_bundle, half, read_bundle, write_part
from cfgen.causal.latent_mean import LatentMean
from cfgen.config import CYCLE, LATENT_DIFFUSION_FIT, Cycle, FitConfig
from cfgen.data.conditions import Schema, default_schema, fit_schema
from cfgen.device import pick_device
from cfgen.edit.latent import load_models
from cfgen.jobs.train_latent_diffusion import diffusion_of, unet_description
from cfgen.sim import cohort
from cfgen.sim.graph import graph
from cfgen.train.cohort import splined
from cfgen.train.cycle import CycleTask
from cfgen.train.fit import fit
from cfgen.train.latent_diffusion import (
    LATENT_DIFFUSION,
    LatentDiffusionConfig,
    LatentDiffusionTask,
    schedule_for,
    unet_config,
)
from cfgen.train.latents import LatentData, LatentReader, age_reader, fit_mean
from cfgen.train.record import trained_on

# Batches are drawn there.
CPU = torch.device("cpu")
HELD_OUT = 24
FIT = replace(LATENT_DIFFUSION_FIT, steps=2000, batch_size=4)
log = logging.getLogger("cfgen")


def data_of(out: Path, schema: Schema, n: int) -> tuple[LatentData, LatentReader]:
    """Latents of the first `n` train people, and the reader of age that they make."""
    people = read_people(out)
    latents, numbers = latents_of(out, "train")
    latents, numbers = latents[:n], numbers[:n]
    held_out, others = latents_of(out, "val")
    log.info("%d people to learn from", len(numbers))
    data = LatentData(
        latents,
        conditions_of(people, schema, numbers),
        torch.ones(len(numbers)),
        held_out[:HELD_OUT, 0],
        conditions_of(people, schema, others[:HELD_OUT]),
    )
    reader = age_reader(schema, data)
    assert reader is not None
    log.info("reader of age, left out: error %.3f, slope %.3f", reader.error, reader.slope)
    return data, reader


def mean_of(data: LatentData, schema: Schema, how: LatentDiffusionConfig) -> LatentMean:
    linear, conditional = splined(schema), how.latent_mean
    latents, c, weights = data.latents, data.conditions, data.weights
    return fit_mean(latents, c, weights, linear, conditional, how.latent_scale)


def train_ldm(
    out: Path,
    name: str,
    config: FitConfig,
    how: LatentDiffusionConfig,
    n: int,
    device: torch.device,
    seconds: float = 0.0,
    ill: Sequence[str] = (),
) -> None:
    """A bundle OUT/NAME with a latent mean and a UNet that know age, sex and how `ill` people are,
    from the first `n` train people; in so many `seconds` where they are said, in place of
    steps."""
    rows = rows_of(read_people(out), "train")[:n]
    illnesses = [cohort.schema(graph()).variable(name) for name in ill]
    schema = fit_schema(rows, Schema((*default_schema().variables, *illnesses)))
    data, reader = data_of(out, schema, n)
    mean = mean_of(data, schema, how)
    task, runs = LatentDiffusionTask(data, mean, device, config, how, reader), out / "runs" / name
    net = fit_within(task, config, runs, seconds) if seconds else fit(task, config, runs)
    source = read_bundle(out / AUTOENCODER)
    bundle = copy_bundle(replace(source, schema=schema), out / name)
    conditional = {"conditional": how.latent_mean}
    bundle = write_part(bundle, "latent_mean", mean.tensors(), conditional, {})
    network = unet_config(data.conditions.shape[1], data.shape, how)
    about = unet_description(network, how)
    write_part(bundle, "unet", half(net), about, trained_on(rows, config))


def go_on(
    source: Bundle,
    path: Path,
    runs: Path,
    config: FitConfig,
    data: LatentData,
    cycle: Cycle | None,
    device: torch.device,
    *,
    mean: LatentMean | None = None,
) -> None:
    """A bundle at `path`: the UNet of `source` trained on, by plain steps or by the cycle's, on
    what another latent mean leaves over where one is given."""
    models, how = load_models(source, device), diffusion_of(source, LATENT_DIFFUSION)
    reader, r_of, net = (
        age_reader(source.schema, data),
        mean or models.latent_mean.to(CPU),
        models.unet,
    )
    task = (
        LatentDiffusionTask(data, r_of, device, config, how, reader, net.train())
        if cycle is None
        else CycleTask(net.train(), data, r_of, device, config, how, cycle, reader)
    )
    trained = fit(task, config, runs)
    copied = copy_bundle(source, path)
    if mean is not None:
        conditional = {"conditional": bool(mean.coefficients[1:].any())}
        copied = write_part(copied, "latent_mean", mean.tensors(), conditional, {})
    about = source.part("unet").config | {"cycle": None if cycle is None else asdict(cycle)}
    write_part(copied, "unet", half(trained), about, source.part("unet").trained)


# It divides by the signal: less of a shift leaves some; and what it is told of is v.
EPS: dict[str, Any] = {"schedule": schedule_for("eps"), "latent_scale": "all"}
# Settings that are compared on a small network: name -> changes of the options.
PAIRS: dict[str, dict[str, Any]] = {
    "both": {},
    "attention": {"conditioning": "attention"},
    "norm": {"conditioning": "norm"},
    "both, no positions": {"positions": False},
    "both, min-snr": {"loss_weights": "min-snr"},
    "both, untold": {"latent_scale": "all"},
    "both, a sigma each": {"latent_scale": "channel"},
    "both, eps": EPS,
    "both, eps, min-snr": EPS | {"loss_weights": "min-snr"},
}


def pairs(
    out: Path, config: FitConfig, how: LatentDiffusionConfig, n: int, device: torch.device
) -> None:
    """Each setting with the same steps, latents and seed; reports in OUT/runs/pairs."""
    schema = fit_schema(rows_of(read_people(out), "train"), default_schema())
    data, reader = data_of(out, schema, n)
    for name, changes in PAIRS.items():
        changed = replace(how, **changes)
        mean = mean_of(data, schema, changed)
        task = LatentDiffusionTask(data, mean, device, config, changed, reader)
        folder = out / "runs" / "pairs" / name.replace(", ", "-").replace(" ", "-")
        fit(task, config, folder)
        with (folder / "report.csv").open(newline="") as file:
            for line in csv.DictReader(file):
                print(name, line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("pairs", "ldm", "more", "cycle"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name")
    parser.add_argument("--source")
    add_fit_options(parser, FIT)
    parser.add_argument("--prediction", choices=("v", "eps"), default="v")
    parser.add_argument("--shift", type=float, default=1.0)
    parser.add_argument("--loss-weights", choices=("uniform", "min-snr"), default="uniform")
    parser.add_argument("--conditioning", choices=("attention", "norm", "both"), default="both")
    parser.add_argument("--no-positions", action="store_true")
    parser.add_argument("--latent-mean", action="store_true")
    parser.add_argument("--mean", choices=("kept", "plain", "conditional"), default="kept")
    parser.add_argument("--latent-scale", choices=("channel", "all", "voxel"), default="all")
    parser.add_argument("--channels", type=int, nargs="+")
    parser.add_argument("--lambda", dest="weight", type=float, default=CYCLE.weight)
    parser.add_argument("--first-term", choices=("factual", "target"), default=CYCLE.first_term)
    parser.add_argument("--t-low", type=float, default=CYCLE.t_low)
    parser.add_argument("--t-high", type=float, default=CYCLE.t_high)
    parser.add_argument("--seconds", type=float, default=0.0, help="of ldm, not --steps")
    parser.add_argument("--ill", nargs="*", default=[], help="Of ldm: ad aud, conditions too.")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    out, device = options.out, pick_device(options.device)
    config = fit_of(options, FIT)
    how = replace(
        LATENT_DIFFUSION,
        schedule=replace(schedule_for(options.prediction), shift=options.shift),
        loss_weights=options.loss_weights,
        conditioning=options.conditioning,
        positions=not options.no_positions,
        latent_mean=options.latent_mean,
        latent_scale=options.latent_scale,
        channels=tuple(options.channels) if options.channels else None,
    )
    if options.stage == "pairs":
        pairs(out, config, how, options.train, device)
    elif options.stage == "ldm":
        seconds, ill = options.seconds, options.ill
        train_ldm(out, options.name, config, how, options.train, device, seconds, ill)
    elif options.stage in ("more", "cycle"):
        cycle = Cycle(options.weight, options.first_term, options.t_low, options.t_high)
        chosen = cycle if options.stage == "cycle" else None
        source, runs = read_bundle(out / options.source), out / "runs" / options.name
        data, _ = data_of(out, source.schema, options.train)
        conditional = replace(how, latent_mean=options.mean == "conditional")
        mean = None if options.mean == "kept" else mean_of(data, source.schema, conditional)
        go_on(source, out / options.name, runs, config, data, chosen, device, mean=mean)


if __name__ == "__main__":
    main()
