"""Autoregressive baseline of benchmarks/cycle.py: brains as tokens, one after the other.

    python benchmarks/cycle_ar.py tokens --out build/cycle --name vqvae-ar --steps 5000
    python benchmarks/cycle_ar.py train --out build/cycle --name vqvae-ar --steps 15000
    python benchmarks/cycle_ar.py make --out build/cycle --name vqvae-ar
    python benchmarks/cycle_compare.py make --out build/cycle --names vqvae-ar

`tokens` trains a VQVAE on images and writes the tokens of all people, `train` a transformer on
them, conditioned on age and sex; both go on where they were interrupted. `make` writes new brains.
It has no counterfactuals: there is no code that a person keeps while the age changes.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from cycle_ar_nets import Tokeniser, Transformer
from cycle_brains import (
    Brains,
    Model,
    add_fit_options,
    brains_of,
    describe,
    draw,
    fit_of,
    inside,
    load_average,
    make_direct,
    read_model,
    save,
    say_cost,
)
from cycle_people import read_people
from torch import Tensor, nn

from cfgen.config import FitConfig
from cfgen.device import autocast, channels_last
from cfgen.nets.judge import SPREAD
from cfgen.train.augmentation import mirror
from cfgen.train.fit import fit, seed_weights
from cfgen.train.trial import try_steps

CPU = torch.device("cpu")
FIT = FitConfig(steps=10_000, learning_rate=5e-4, batch_size=4, ema_decay=0.998)
# Of the tokeniser's steps, and how often codes that nobody takes are put elsewhere.
UNQUANTISED, REVIVED_EVERY = 0.2, 10
# Brains that say how large the encoder's first numbers are.
SCALE_OF = 8


@dataclass(frozen=True)
class Ar:
    """`channels` of the tokeniser, finest first; `width`, `layers`, `heads` of the transformer."""

    codes: int = 512
    embedding: int = 16
    channels: tuple[int, int, int] = (16, 32, 64)
    width: int = 192
    layers: int = 6
    heads: int = 6


class TokeniserTask:
    """The squared error of reconstructions, and the encoder's distance from its codes.

    At first nothing is quantised: an encoder that has learned nothing comes closer to its codes by
    saying the same of everything, and never leaves that again.
    """

    critic = None

    def __init__(self, brains: Brains, config: FitConfig, ar: Ar) -> None:
        seed_weights(config.seed)
        self.brains, self.config = brains, config
        net = Tokeniser(brains.centre, ar.codes, ar.embedding, ar.channels)
        some = range(0, len(brains.numbers), -(-len(brains.numbers) // SCALE_OF))
        net.start(torch.stack([brains.image(n) for n in some])[:, None])
        self.net = channels_last(net, CPU)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        x, _ = self.brains.batch(self.config.batch_size, generator)
        h, distance = self.net.encode(x), torch.zeros(())
        if step >= UNQUANTISED * self.config.steps:
            if step % REVIVED_EVERY == 0:
                self.net.take_codes(h.detach(), generator)
            h, distance = self.net.quantised(h)
        back = self.net.decode(h)
        # In units of a voxel's spread, as the network has it.
        error = ((back - x) / SPREAD).square().mean()
        perplexity = self.net.vqvae.quantizer.perplexity
        return error + distance, {
            "error": error.item(),
            "distance": distance.item(),
            "perplexity": perplexity.item(),
        }

    def critic_loss(self, step: int) -> Tensor | None:
        return None

    @torch.no_grad()
    def report(self, net: nn.Module, picture: Path) -> dict[str, float]:
        """PSNR of held-out brains given back, and how many codes they take."""
        x = self.brains.held_out
        tokens = torch.cat([net.tokens(some[:, None]) for some in x.split(4)])
        back = torch.cat([net.images(some) for some in tokens.split(4)])
        draw(picture, [x[:8], back[:8]])
        values = [inside(a, b) for a, b in zip(x, back, strict=True)]
        return {"psnr_db": sum(values) / len(values), "codes": len(tokens.unique())}


@dataclass(frozen=True)
class Tokens:
    """`train` (N, 2, n) of brains and their mirror images, and `held_out` (M, n)."""

    train: Tensor
    held_out: Tensor


class TransformerTask:
    """Cross-entropy of each token after the conditions and all tokens before it."""

    critic = None

    def __init__(
        self, tokens: Tokens, brains: Brains, tokeniser: Tokeniser, config: FitConfig, ar: Ar
    ):
        seed_weights(config.seed)
        self.tokens, self.brains, self.tokeniser, self.config = tokens, brains, tokeniser, config
        self.net = transformer(ar, tokeniser.grid, brains.conditions.shape[1])

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        size, train = self.config.batch_size, self.tokens.train
        picks = torch.randint(len(train), (size,), generator=generator)
        views = torch.randint(train.shape[1], (size,), generator=generator)
        tokens = train[picks, views].long()
        scores = self.net(tokens, self.brains.conditions[picks]).float()
        return F.cross_entropy(scores.flatten(0, 1), tokens.flatten()), {}

    def critic_loss(self, step: int) -> Tensor | None:
        return None

    @torch.no_grad()
    def report(self, net: nn.Module, picture: Path) -> dict[str, float]:
        """Nats a token of held-out brains; `heard`, how many nats a brain is likelier under its own
        conditions than under another person's."""
        tokens, c = self.tokens.held_out.long(), self.brains.held_out_conditions
        own, other = self._nats(net, tokens, c), self._nats(net, tokens, c.roll(1, 0))
        ages = c[:1].repeat(8, 1)
        ages[:, 0] = torch.linspace(-1.7, 1.7, 8)
        uniforms = torch.rand(8, net.length, generator=torch.Generator().manual_seed(0))
        draw(picture, [self.tokeniser.images(net.sample(ages, uniforms))])
        return {"nats": own, "heard": (other - own) * net.length}

    def _nats(self, net: nn.Module, tokens: Tensor, c: Tensor) -> float:
        parts = []
        for some, conditions in zip(tokens.split(4), c.split(4), strict=True):
            with autocast(CPU):
                scores = net(some, conditions).float()
            parts.append(F.cross_entropy(scores.transpose(1, 2), some, reduction="none"))
        return float(torch.cat(parts).mean())


def transformer(ar: Ar, grid: list[int], conditions: int) -> Transformer:
    return Transformer(ar.codes, grid, conditions, ar.width, ar.layers, ar.heads)


def settings_of(model: Model) -> Ar:
    return Ar(**model.settings | {"channels": tuple(model.settings["channels"])})


def tokeniser_of(out: Path, name: str, shape: tuple[int, ...]) -> Tokeniser:
    """The tokeniser that was trained; its weights hold the mean image."""
    ar = settings_of(read_model(out, name))
    net = Tokeniser(torch.zeros(shape), ar.codes, ar.embedding, ar.channels)
    load_average(net, out / "runs" / f"{name}-tokens")
    return net


@torch.inference_mode()
def write_tokens(out: Path, name: str, brains: Brains) -> None:
    """OUT/NAME/tokens.npz."""
    net = tokeniser_of(out, name, brains.images.shape[1:])
    train = []
    for place in range(len(brains.numbers)):
        image = brains.image(place)
        train.append(net.tokens(torch.stack([image, mirror(image)])[:, None]).short())
    held_out = torch.cat([net.tokens(x[None, None]).short() for x in brains.held_out])
    arrays = {"train": torch.stack(train).numpy(), "held_out": held_out.numpy()}
    save(out / name / "tokens.npz", **arrays)


def make(out: Path, name: str, n: int, temperature: float) -> None:
    """OUT/NAME/direct.npz."""
    model, people = read_model(out, name), read_people(out)
    tokeniser = tokeniser_of(out, name, people.images.shape[1:])
    conditions = sum(v.width for v in model.schema.variables)
    net = transformer(settings_of(model), tokeniser.grid, conditions)
    step = load_average(net, out / "runs" / name)

    def new(c: Tensor, draws: list[torch.Generator]) -> Tensor:
        uniforms = torch.stack([torch.rand(net.length, generator=g) for g in draws])
        return tokeniser.images(net.sample(c, uniforms, temperature))

    make_direct(out / name, model.schema, n, new)
    print(f"{name}: brains of step {step} in {out / name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("tokens", "train", "make"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default="vqvae-ar")
    parser.add_argument("--time", action="store_true", help="Say what a step takes, no more.")
    add_fit_options(parser, FIT)
    parser.add_argument("--n", type=int, default=40, help="New brains.")
    parser.add_argument("--temperature", type=float, default=1.0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    out, name = options.out, options.name
    if options.stage == "make":
        make(out, name, options.n, options.temperature)
        return
    config = fit_of(options, FIT)
    model = describe(out, name, Ar(), options.train)
    ar = settings_of(model)
    brains = brains_of(read_people(out), model.schema, model.numbers)
    logging.getLogger("cfgen").info("%d people to learn from", len(brains.numbers))
    task: TokeniserTask | TransformerTask
    if options.stage == "tokens":
        task, folder = TokeniserTask(brains, config, ar), out / "runs" / f"{name}-tokens"
    else:
        with np.load(out / name / "tokens.npz") as file:
            tokens = Tokens(*(torch.from_numpy(file[k]) for k in ("train", "held_out")))
        tokeniser = tokeniser_of(out, name, brains.images.shape[1:])
        task, folder = TransformerTask(tokens, brains, tokeniser, config, ar), out / "runs" / name
    if options.time:
        say_cost(try_steps(options.stage, task, config, 3))
        return
    fit(task, config, folder)
    if options.stage == "tokens":
        write_tokens(out, name, brains)


if __name__ == "__main__":
    main()
