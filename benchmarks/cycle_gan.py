"""Adversarial baselines of benchmarks/cycle.py: VAE-GAN and alpha-GAN of age and sex.

    python benchmarks/cycle_gan.py train --out build/cycle --name vae-gan --kind vae-gan
    python benchmarks/cycle_gan.py train --out build/cycle --name alpha-gan --kind alpha-gan
    python benchmarks/cycle_gan.py make --out build/cycle --name alpha-gan
    python benchmarks/cycle_compare.py make --out build/cycle --names vae-gan alpha-gan

`train` goes on where it was interrupted; `time`, in its place, says what a step takes and how many
a core does in an hour. `make` writes new brains and counterfactuals of test people with the last
checkpoint's average: a person's code, decoded under another age.

As in CDM, only the generator hears age and sex, in the code; with --critic-hears the critic does
too.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from cycle_brains import (
    Brains,
    add_fit_options,
    brains_of,
    describe,
    draw,
    few_brains,
    fit_of,
    inside,
    load_average,
    make_changed,
    make_direct,
    read_model,
    say_cost,
)
from cycle_gan_nets import Critic, Encoder, Generator, code_critic, gradient_penalty
from cycle_people import read_people
from torch import Tensor, nn

from cfgen.config import FitConfig
from cfgen.device import channels_last, no_autocast
from cfgen.nets.autoencoder import kl_divergence
from cfgen.train.fit import fit, seed_weights
from cfgen.train.trial import try_steps

CPU = torch.device("cpu")
Kind = Literal["vae-gan", "alpha-gan"]
# The batch and the rate are those of Kwon et al.'s code.
FIT = FitConfig(steps=10_000, learning_rate=2e-4, batch_size=4, ema_decay=0.998)
# The image itself and the first map of the critic: deeper ones, of a critic that learns as it goes,
# doubled the error of a voxel in 40 steps.
COMPARED = 2


@dataclass(frozen=True)
class Gan:
    """`channels` of the generator, coarsest first, and of encoder and critic, finest first.

    Weights of the loss terms: `l1` of reconstructions and `codes` (alpha-GAN), `similarity` in the
    critic's maps and `kl` of a mean voxel (VAE-GAN: errors of a hundred neighbours are one), and
    `adversarial`. A critic's gradient is of length 1 over all voxels, that of a mean L1 the root of
    their number below it: `adversarial` is divided by it too, so that the two can be compared. (In
    the code of Kwon et al. the weights are 10 and, so written, 512: months of training.) `anchor`
    pulls codes to zero as softly as keeps them near while their critic has learned nothing.
    """

    kind: Kind
    code: int = 128
    channels: tuple[int, int, int] = (64, 32, 16)
    trunk: tuple[int, ...] = (32, 64, 128)
    critic_hears: bool = False
    l1: float = 10.0
    codes: float = 0.01
    anchor: float = 0.02
    similarity: float = 1.0
    kl: float = 100.0
    adversarial: float = 1.0
    penalty: float = 10.0


class GanTask:
    """What the two have in common: encoder and generator, the critic, and what is reported."""

    critic: nn.Module

    def __init__(self, brains: Brains, config: FitConfig, gan: Gan) -> None:
        seed_weights(config.seed)
        self.brains, self.config, self.gan = brains, config, gan
        conditions = brains.conditions.shape[1]
        self.voxels = brains.centre.numel()
        self.adversarial = gan.adversarial / self.voxels**0.5
        self.net = channels_last(gan_net(gan, brains.centre, conditions), CPU)
        heard = conditions if gan.critic_hears else 0
        self.image_critic = channels_last(Critic(brains.centre, gan.trunk, heard), CPU)

    def encode(self, net: nn.Module, x: Tensor) -> Tensor:
        """(B, Z): the code, of a posterior its mean."""
        return net["encoder"](x).float()[:, : self.gan.code]

    def drawn(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """A batch of images and conditions, and codes of nobody."""
        x, c = self.brains.batch(self.config.batch_size, generator)
        return x, c, torch.randn(len(x), self.gan.code, generator=generator)

    @torch.no_grad()
    def report(self, net: nn.Module, picture: Path) -> dict[str, float]:
        """PSNR of held-out brains given back; how far one standard deviation of age is heard in
        their codes and in codes of nobody."""
        x, c = self.brains.held_out, self.brains.held_out_conditions
        z = self.encode(net, x[:, None])
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
        younger, older = (c + s * one_hot(c.shape[1]) for s in (-0.5, 0.5))
        back = decode(net, z, c)
        changes = {
            "heard": decode(net, z, older) - decode(net, z, younger),
            "heard_new": decode(net, noise, older) - decode(net, noise, younger),
        }
        shown = min(8, len(c))
        ages = c[:1].repeat(shown, 1)
        ages[:, 0] = torch.linspace(-1.7, 1.7, shown)
        new = decode(net, noise, self.brains.conditions[: len(c)])
        same = decode(net, noise[:1].expand(shown, -1), ages)
        draw(picture, [x[:8], back[:8], new[:8], same])
        values = [inside(a, b) for a, b in zip(x, back, strict=True)]
        heard = {name: self.brains.heard(d.mean(0)) for name, d in changes.items()}
        # 1 where brains of nobody differ from one another as those of people do.
        spread = float((new.std(0).square().mean() / x.std(0).square().mean()).sqrt())
        return {"psnr_db": sum(values) / len(values)} | heard | {"spread_new": spread}


class AlphaTask(GanTask):
    """alpha-GAN with a gradient penalty (Kwon et al. 2019): L1 of reconstructions, a critic of
    images, of which given back and new ones are both false, and a critic of codes in place of the
    KL divergence. Their published code leaves the codes' critic out of the encoder's loss; it is in
    it here, as in the paper."""

    def __init__(self, brains: Brains, config: FitConfig, gan: Gan) -> None:
        super().__init__(brains, config, gan)
        self.critic = nn.ModuleDict({"image": self.image_critic, "code": code_critic(gan.code)})

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        x, c, noise = self.drawn(generator)
        self.critic.requires_grad_(False)
        z = self.encode(self.net, x)
        back, new = self.net["generator"](torch.cat([z, noise]), c.repeat(2, 1)).float().chunk(2)
        l1 = (back - x).abs().mean()
        # One pass of the critic for both.
        scores = self.image_critic(torch.cat([back, new]), c.repeat(2, 1))[0].float()
        code = self.critic["code"](z).float().mean()
        how, length = self.gan, z.square().sum(1).mean()
        total = how.l1 * l1 - self.adversarial * 2 * scores.mean()
        total = total + how.codes * (how.anchor * length / 2 - code)
        self.batch = (x, c, back.detach(), new.detach(), z.detach(), noise)
        self.uniform = torch.rand(3, len(x), generator=generator)
        figures = {"l1": l1, "fooled": scores.mean(), "code": code, "length": length}
        return total, {k: v.item() for k, v in figures.items()}

    def critic_loss(self, step: int) -> Tensor:
        self.critic.requires_grad_(True)
        x, c, back, new, z, noise = self.batch

        def score(images: Tensor) -> Tensor:
            return self.image_critic(images, c)[0]

        # In bf16 a gradient of a gradient is rough, and the critics are small.
        with no_autocast(CPU):
            images = score(back).mean() + score(new).mean() - 2 * score(x).mean()
            codes = self.critic["code"](z).mean() - self.critic["code"](noise).mean()
            penalties = (
                gradient_penalty(score, x, back, self.uniform[0])
                + gradient_penalty(score, x, new, self.uniform[1])
                + gradient_penalty(self.critic["code"], noise, z, self.uniform[2])
            )
        return images + codes + self.gan.penalty * penalties


class VaeTask(GanTask):
    """VAE-GAN (Larsen et al. 2016): a VAE whose reconstructions are compared in the critic's first
    maps, each in units of its variance, and a critic of images. The encoder learns nothing from a
    critic that is fooled: that term is of new brains alone."""

    def __init__(self, brains: Brains, config: FitConfig, gan: Gan) -> None:
        super().__init__(brains, config, gan)
        self.critic = self.image_critic

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        x, c, noise = self.drawn(generator)
        self.critic.requires_grad_(False)
        mean, log_variance = self.net["encoder"](x).float().chunk(2, 1)
        std = torch.exp(log_variance.clamp(-20.0, 10.0) / 2)
        z = mean + std * torch.randn(mean.shape, generator=generator)
        back, new = self.net["generator"](torch.cat([z, noise]), c.repeat(2, 1)).float().chunk(2)
        scores, maps = self.critic(torch.cat([back, new]), c.repeat(2, 1))
        own = self.critic(x, c)[1]
        errors = [
            F.mse_loss(a.float()[: len(x)], b.float()) / b.float().var()
            for a, b in zip(maps[:COMPARED], own[:COMPARED], strict=True)
        ]
        similarity = torch.stack(errors).mean()
        kl = kl_divergence(mean, std)
        fooled = F.softplus(-scores.float()[len(x) :]).mean()
        how = self.gan
        total = how.similarity * similarity + how.kl * kl / self.voxels + self.adversarial * fooled
        self.batch = (x, c, back.detach(), new.detach())
        l1 = (back.detach() - x).abs().mean()
        figures = {"l1": l1, "similarity": similarity, "kl": kl}
        return total, {k: v.item() for k, v in figures.items()} | {"fooled": fooled.item()}

    def critic_loss(self, step: int) -> Tensor:
        self.critic.requires_grad_(True)
        x, c, back, new = self.batch
        scores = self.critic(torch.cat([x, back, new]), c.repeat(3, 1))[0].float()
        real, given_back, made = scores.chunk(3)
        # Either kind of false images counts half as much as the real ones.
        false = (F.softplus(given_back).mean() + F.softplus(made).mean()) / 2
        return F.softplus(-real).mean() + false


TASKS: dict[Kind, Callable[[Brains, FitConfig, Gan], GanTask]] = {
    "vae-gan": VaeTask,
    "alpha-gan": AlphaTask,
}


def gan_net(gan: Gan, centre: Tensor, conditions: int) -> nn.ModuleDict:
    """`encoder` and `generator`; a VAE's encoder gives log variances after the means."""
    outputs = gan.code * (2 if gan.kind == "vae-gan" else 1)
    return nn.ModuleDict(
        {
            "encoder": Encoder(centre, gan.trunk, outputs),
            "generator": Generator(gan.code, conditions, centre, gan.channels),
        }
    )


def decode(net: nn.Module, z: Tensor, c: Tensor) -> Tensor:
    """(B, D, H, W) of codes and conditions."""
    return net["generator"](z, c)[:, 0].clamp(0.0, 1.2)


def one_hot(width: int) -> Tensor:
    """(K,): age is the first of the condition vector."""
    return F.one_hot(torch.tensor(0), width).float()


def train(out: Path, name: str, config: FitConfig, gan: Gan, n: int) -> None:
    model = describe(out, name, gan, n)
    brains = brains_of(read_people(out), model.schema, model.numbers)
    logging.getLogger("cfgen").info("%d people to learn from", len(brains.numbers))
    fit(TASKS[gan.kind](brains, config, gan), config, out / "runs" / name)


def make(out: Path, name: str, n: int, split: str, people_n: int) -> None:
    """OUT/NAME/direct.npz and changed.npz."""
    model, people = read_model(out, name), read_people(out)
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in model.settings.items()}
    gan = Gan(**settings)
    conditions = sum(v.width for v in model.schema.variables)
    net = gan_net(gan, torch.zeros(people.images.shape[1:]), conditions)
    step = load_average(net, out / "runs" / name)

    def new(c: Tensor, draws: list[torch.Generator]) -> Tensor:
        z = torch.stack([torch.randn(gan.code, generator=g) for g in draws])
        return decode(net, z, c)

    def change(image: Tensor, c: Tensor, others: Tensor) -> Tensor:
        z = net["encoder"](image[None, None])[:, : gan.code]
        return decode(net, z.expand(1 + len(others), -1), torch.cat([c[None], others]))

    make_direct(out / name, model.schema, n, new)
    make_changed(out / name, people, model.schema, people.rows(split)[:people_n].tolist(), change)
    print(f"{name}: brains of step {step} in {out / name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("train", "make", "time"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--kind", choices=tuple(TASKS), default="alpha-gan")
    add_fit_options(parser, FIT)
    parser.add_argument("--critic-hears", action="store_true")
    for term in ("l1", "codes", "anchor", "similarity", "kl", "adversarial", "penalty"):
        parser.add_argument(f"--{term}", type=float, default=getattr(Gan, term))
    parser.add_argument("--n", type=int, default=40, help="New brains.")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--people", type=int, default=30, help="People who are changed.")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    if options.stage == "make":
        make(options.out, options.name, options.n, options.split, options.people)
        return
    gan = Gan(
        options.kind,
        critic_hears=options.critic_hears,
        l1=options.l1,
        codes=options.codes,
        anchor=options.anchor,
        similarity=options.similarity,
        kl=options.kl,
        adversarial=options.adversarial,
        penalty=options.penalty,
    )
    config = fit_of(options, FIT)
    if options.stage == "time":
        brains = few_brains(options.out)
        say_cost(try_steps(options.name, TASKS[gan.kind](brains, config, gan), config, 3))
        return
    train(options.out, options.name, config, gan, options.train)


if __name__ == "__main__":
    main()
