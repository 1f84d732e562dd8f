"""The autoencoder of benchmarks/cycle.py: three halvings at 2 mm, made in two ways side by side.

    python benchmarks/cycle_autoencoder.py --out build/cycle --way folded --steps 600
    python benchmarks/cycle_autoencoder.py --out build/cycle --way scratch --steps 600

`folded` takes the shipped autoencoder with a linear level under it (principal components of its
latents) and trains all of it on; `scratch` trains one with a third level of its own. Prints the
PSNR inside held-out brains as it goes; the network is OUT/autoencoder-WAY. --steps 0 measures the
linear level alone.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import torch
from cycle_people import People, read_people
from torch import Tensor

from cfgen.bundle import Bundle, half, net_config, new_bundle, read_bundle, write_part
from cfgen.config import AUTOENCODER_FIT, PREPROCESS
from cfgen.data.conditions import default_schema, fit_schema
from cfgen.data.table import Row
from cfgen.device import autocast
from cfgen.edit.latent import load_autoencoder
from cfgen.nets.autoencoder import Autoencoder, start_from_components
from cfgen.train.autoencoder import AUTOENCODER, AutoencoderLoss, AutoencoderTask
from cfgen.train.fit import fit
from cfgen.train.record import trained_on

DEFAULT = Path(__file__).parents[1] / "cfgen" / "bundles" / "default"
CPU = torch.device("cpu")
FOLDED = replace(AUTOENCODER, latent_channels=32, folded_from=AUTOENCODER.latent_channels)
SCRATCH = replace(
    AUTOENCODER,
    channels=(48, 96, 96),
    res_blocks=(1, 2, 2),
    attention=(False, False, False),
    latent_channels=32,
)
# Of so many people the components are taken.
COMPONENTS_OF = 40


def rows_of(people: People, split: str) -> list[Row]:
    """The people of a split as rows of a manifest; there are no files."""
    return [
        Row(
            subject=f"sub-{number:05d}",
            image=Path("images.npy"),
            split=split,
            values=people.values(number),
        )
        for number in people.rows(split)
    ]


@torch.inference_mode()
def encoded(autoencoder: Autoencoder, images: Tensor) -> Tensor:
    """Latents (N, C, d, h, w) of images (N, D, H, W)."""
    latents = []
    for image in images:
        x = image.float()[None, None].contiguous(memory_format=torch.channels_last_3d)
        with autocast(CPU):
            latents.append(autoencoder.encode(x)[0].float())
    return torch.stack(latents)


def fold(net: Autoencoder, images: Tensor) -> None:
    """Give a folded `net` the shipped weights, and the principal components of their latents of
    images (N, D, H, W)."""
    shipped = load_autoencoder(read_bundle(DEFAULT), CPU)
    missing = net.load_state_dict(shipped.state_dict(), strict=False).missing_keys
    assert set(missing) == {"fold.weight", "unfold.weight"}, missing
    start_from_components(net, encoded(shipped, images))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--way", choices=("folded", "scratch"), default="folded")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--report-every", type=int, default=200)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    people = read_people(options.out)
    train, val = people.rows("train"), people.rows("val")
    rows = rows_of(people, "train")
    rate = 4e-4 if options.way == "folded" else AUTOENCODER_FIT.learning_rate
    config = replace(
        AUTOENCODER_FIT,
        steps=max(options.steps, 1),
        learning_rate=rate,
        warmup_steps=30,
        ema_decay=0.98,
        checkpoint_every=100,
        report_every=options.report_every,
    )
    held_out = torch.from_numpy(people.images[val[:12]])
    net = FOLDED if options.way == "folded" else SCRATCH
    task = AutoencoderTask(
        torch.from_numpy(people.images[train]),
        torch.ones(len(train)),
        held_out,
        held_out > 0,
        CPU,
        config,
        replace(net, latent_channels=options.channels),
        # The adversary sharpens what the judge does not read.
        AutoencoderLoss(adversarial_from=2.0),
    )
    out = options.out / f"autoencoder-{options.way}-{options.channels}"
    out.mkdir(exist_ok=True)
    if options.way == "folded":
        fold(task.net, torch.from_numpy(people.images[train[:COMPONENTS_OF]]))
    first = task.report(task.net.eval(), out / "start.png")
    logging.info("before: %s", first)
    trained = fit(task, config, out / "training") if options.steps else task.net
    schema = fit_schema(rows, default_schema())
    bundle: Bundle = new_bundle(out, PREPROCESS, schema, {"name": "simulated brains"})
    write_part(
        bundle,
        "autoencoder",
        half(trained),
        net_config(task.net.config),
        trained_on(rows, config),
    )


if __name__ == "__main__":
    main()
