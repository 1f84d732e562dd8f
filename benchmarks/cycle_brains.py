"""What the baselines of benchmarks/cycle.py share: the people they learn from, and the brains they
make, as files that cycle_compare.py judges.

The people, their splits and their conditions are those of the diffusion model. Its latents are
standardised by a mean and a spread; here images are, by the mean image of the train people and one
spread for all voxels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cycle_autoencoder import rows_of
from cycle_latents import conditions_of
from cycle_people import People, read_people
from safetensors import safe_open
from torch import Tensor, nn

from cfgen.config import FitConfig
from cfgen.data.conditions import Schema, default_schema, fit_schema
from cfgen.data.volume import write_atomically
from cfgen.errors import UsageError
from cfgen.metrics.image import psnr
from cfgen.nets.judge import SPREAD
from cfgen.streams import Purpose, torch_stream
from cfgen.train.augmentation import mirror
from cfgen.train.fit import CHECKPOINT
from cfgen.train.trial import Trial

HELD_OUT = 16
# Those of the paper's Table 2.
DELTAS = (-60, -30, -10, 10, 30, 60)
# Latents of the diffusion model are drawn from the same stream.
SEED = 0


@dataclass(frozen=True)
class Brains:
    """`images` (P, D, H, W) of all people, mapped into memory, of whom `numbers` are learned from;
    `conditions` (N, K). `held_out` (M, D, H, W) are of val. `centre` (D, H, W) is the mean image of
    the train people, `older` how it changes with one standard deviation of age."""

    images: np.ndarray
    numbers: Sequence[int]
    conditions: Tensor
    held_out: Tensor
    held_out_conditions: Tensor
    centre: Tensor
    older: Tensor

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images (B, 1, D, H, W), one in two mirrored, and their conditions (B, K)."""
        picks = torch.randint(len(self.numbers), (size,), generator=generator).tolist()
        flips = (torch.rand(size, generator=generator) < 0.5).tolist()
        seen = [self.image(n) for n in picks]
        views = [mirror(x) if flip else x for x, flip in zip(seen, flips, strict=True)]
        x = torch.stack(views)[:, None].contiguous(memory_format=torch.channels_last_3d)
        return x, self.conditions[picks]

    def image(self, place: int) -> Tensor:
        """(D, H, W) float32 of the train person at `place`."""
        return torch.from_numpy(self.images[self.numbers[place]].astype(np.float32))

    def heard(self, change: Tensor) -> float:
        """How far (D, H, W), a change by one standard deviation of age, goes the data's way: 1 is
        all of it, 0 nothing."""
        return float((change * self.older).sum() / self.older.square().sum())


def brains_of(people: People, schema: Schema, numbers: Sequence[int]) -> Brains:
    """The train people `numbers` and the first of val."""
    others = people.rows("val")[:HELD_OUT].tolist()
    conditions = conditions_of(people, schema, list(numbers))
    age = conditions[:, 0] - conditions[:, 0].mean()
    centre, older = (torch.zeros(people.images.shape[1:]) for _ in range(2))
    for number, a in zip(numbers, age.tolist(), strict=True):
        image = torch.from_numpy(people.images[number].astype(np.float32))
        # Of a brain and of its mirror image, as they are learned from.
        image = (image + mirror(image)) / 2
        centre += image / len(numbers)
        older += a * image / float(age.square().sum())
    return Brains(
        people.images,
        numbers,
        conditions,
        torch.from_numpy(people.images[others]).float(),
        conditions_of(people, schema, others),
        centre,
        older,
    )


def add_fit_options(parser: argparse.ArgumentParser, fit: FitConfig) -> None:
    """The options of a training, `fit` without them."""
    parser.add_argument("--steps", type=int, default=fit.steps)
    parser.add_argument("--rate", type=float, default=fit.learning_rate)
    parser.add_argument("--batch", type=int, default=fit.batch_size)
    parser.add_argument("--ema", type=float, default=fit.ema_decay)
    parser.add_argument("--report-every", type=int, default=500)
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)


def fit_of(options: argparse.Namespace, fit: FitConfig) -> FitConfig:
    return replace(
        fit,
        steps=options.steps,
        learning_rate=options.rate,
        batch_size=options.batch,
        ema_decay=options.ema,
        report_every=options.report_every,
        seed=options.seed,
    )


def few_brains(out: Path) -> Brains:
    """Eight train people, to try a step on."""
    people = read_people(out)
    schema = fit_schema(rows_of(people, "train"), default_schema())
    return brains_of(people, schema, people.rows("train")[:8].tolist())


def say_cost(trial: Trial) -> None:
    """What a step takes of a core, whoever else is on it."""
    steps = 3600 / trial.core_seconds
    print(f"{trial.text()}; {trial.core_seconds:.2f} s of a core, {steps:.0f} steps an hour")


@dataclass(frozen=True)
class Model:
    """What OUT/NAME/model.json says of a baseline: its settings and whom it learns from, so that
    more people on disk change nothing when it goes on."""

    settings: dict[str, Any]
    schema: Schema
    numbers: list[int]


def describe(out: Path, name: str, settings: object, n: int) -> Model:
    """The model as it was begun, or a new one of `n` train people. Raises UsageError where it was
    begun with other settings."""
    path = out / name / "model.json"
    if path.exists():
        model = read_model(out, name)
        if model.settings != json.loads(json.dumps(asdict(settings))):  # type: ignore[call-overload]
            raise UsageError(
                path, "begun with other settings", str(model.settings), "use another --name"
            )
        return model
    people = read_people(out)
    rows = rows_of(people, "train")[:n]
    schema = fit_schema(rows, default_schema())
    numbers = people.rows("train")[:n].tolist()
    about = {
        "settings": asdict(settings),  # type: ignore[call-overload]
        "schema": schema.to_json(),
        "numbers": numbers,
    }
    write_atomically(path, lambda p: p.write_text(json.dumps(about)))
    return read_model(out, name)


def read_model(out: Path, name: str) -> Model:
    about = json.loads((out / name / "model.json").read_text())
    return Model(about["settings"], Schema.from_json(about["schema"]), about["numbers"])


def load_average(net: nn.Module, folder: Path) -> int:
    """The moving average of the last checkpoint of a training, which may go on; its step."""
    prefix = "average/module."
    with safe_open(folder / CHECKPOINT, "pt") as file:
        names = [k for k in file.keys() if k.startswith(prefix)]  # noqa: SIM118
        net.load_state_dict({k.removeprefix(prefix): file.get_tensor(k) for k in names})
        step = int(json.loads(file.metadata()["run"])["step"])
    net.eval()
    return step


# Conditions (B, K) and a generator for each -> images (B, D, H, W).
New = Callable[[Tensor, list[torch.Generator]], Tensor]
# An image (D, H, W), its conditions (K,) and others (J, K) -> images (1 + J, D, H, W), of which the
# first is the image as the model gives it back.
Change = Callable[[Tensor, Tensor, Tensor], Tensor]


def spaced(schema: Schema, n: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Conditions of `n` brains of nobody: ages of the support, either sex in turn."""
    low, high = schema.variable("age").support
    ages = np.linspace(low, high, n)
    female = np.arange(n) % 2
    sexes = ["F" if f else "M" for f in female]
    vectors = [schema.encode({"age": a, "sex": s}) for a, s in zip(ages, sexes, strict=True)]
    return torch.from_numpy(np.stack(vectors)), ages, female


def other_ages(schema: Schema, age: float) -> list[float]:
    """The ages that a person is taken to."""
    low, high = schema.variable("age").support
    return [age + d for d in DELTAS if low <= age + d <= high]


@torch.inference_mode()
def make_direct(folder: Path, schema: Schema, n: int, new: New) -> None:
    """FOLDER/direct.npz: `images` (n, D, H, W) float16 of nobody, `age` and `female` as asked."""
    c, ages, female = spaced(schema, n)
    draws = [torch_stream(SEED, Purpose.SAMPLES, k) for k in range(n)]
    images = [new(c[k : k + 8], draws[k : k + 8]).half() for k in range(0, n, 8)]
    save(folder / "direct.npz", images=torch.cat(images).numpy(), age=ages, female=female)


@torch.inference_mode()
def make_changed(
    folder: Path, people: People, schema: Schema, rows: Sequence[int], change: Change
) -> None:
    """FOLDER/changed.npz: `images` (m, D, H, W) float16, the `person` of each, the `age` asked for
    and its `delta`, 0 where the image is as the model gives it back."""
    made: list[np.ndarray] = []
    about: list[tuple[int, float, float]] = []
    for number in rows:
        values = people.values(number)
        ages = [values["age"], *other_ages(schema, values["age"])]
        c = np.stack([schema.encode(values | {"age": a}) for a in ages])
        conditions = torch.from_numpy(c)
        image = torch.from_numpy(people.images[number].astype(np.float32))
        made.append(change(image, conditions[0], conditions[1:]).half().numpy())
        about += [(number, a, a - values["age"]) for a in ages]
    person, age, delta = (np.array(column) for column in zip(*about, strict=True))
    save(folder / "changed.npz", images=np.concatenate(made), person=person, age=age, delta=delta)


def save(path: Path, **arrays: np.ndarray) -> None:
    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.savez(file, **arrays)

    write_atomically(path, write)


def slices(images: Tensor) -> Tensor:
    """A picture of images (N, D, H, W) side by side: an axial and a coronal slice through the
    ventricles."""
    h, w = images.shape[2] * 52 // 96, images.shape[3] * 46 // 88
    axial = torch.cat([x[:, :, w].T.flip(0) for x in images.float()], 1)
    coronal = torch.cat([x[:, h, :].T.flip(0) for x in images.float()], 1)
    return torch.cat([axial, coronal])


def draw(path: Path, rows: Sequence[Tensor]) -> None:
    """Rows of images (N, D, H, W) below one another."""
    from matplotlib.image import imsave

    picture = torch.cat([slices(images) for images in rows])
    imsave(path, picture.clamp(0, 1.1).numpy(), cmap="gray", vmin=0, vmax=1.1)


def inside(image: Tensor, other: Tensor) -> float:
    """PSNR of `other` where `image` (D, H, W) is a brain."""
    return psnr(other.numpy(), image.numpy(), (image > 0).numpy())


def standard(x: Tensor, centre: Tensor) -> Tensor:
    return (x - centre) / SPREAD


def raw(x: Tensor, centre: Tensor) -> Tensor:
    """The inverse of `standard`."""
    return centre + SPREAD * x
