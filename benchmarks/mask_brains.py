"""Brains of nobody by a network that takes masks: PCGM's task 1 on simulated people.

    python benchmarks/control.py --people build/cycle --out build/control --kinds concatenate
    python benchmarks/mask_brains.py --people build/cycle --bundle build/control/concatenate-300 \
        --out build/brains --n 100

As many brains as there are people of the test split, by the same noise and

    nothing         no conditions and no masks
    conditions      age and sex of the test people
    masks           and their masks
    edited masks    and the masks of the next person, moved to the volumes that the causal model
                    gives that one at this one's age and sex: nobody has these masks

beside `decoded`, the test people as the autoencoder gives them back: no generator with this decoder
is better. With --decoder the same latents are decoded by that bundle's diffusion decoder too. Of
every set, against the images of the test people: Frechet distance and KID by the judge of simulated
brains, MMD of its features with the share of permutations that reach it, MMD of voxels (linear),
the difference of MS-SSIM between pairs (%), and of regions' volumes by the shipped segmenter how
many have |d| < 0.2, and the largest; the floor is two halves of the test people. For sets that
follow people one by one also the slope of log volumes on theirs (`own`). OUT/sets.csv has a line a
set, OUT/SET.npy the latents, OUT/SET.png a slice each; interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from aud_people import measured, on_grid
from control import Reading, masks_of, save_array, splits_of
from cycle_compare import draw, set_figures
from cycle_latents import latents_of
from cycle_people import People, read_people
from drift import Table
from scm import STRUCTURES, fitted
from torch import Tensor

from cfgen.bundle import Bundle, read_bundle
from cfgen.config import DECODING, SEED, Generation
from cfgen.data.volume import write_atomically
from cfgen.device import pick_device
from cfgen.edit.anatomy import anatomy_of, moved_maps
from cfgen.edit.decoder import load_decoder
from cfgen.edit.edits import Question, TissueEdits
from cfgen.edit.engine import Engine, load_engine
from cfgen.edit.generation import sample_latent
from cfgen.edit.latent import Models
from cfgen.edit.volumes import Law
from cfgen.edit.way import Way
from cfgen.errors import CfgenError
from cfgen.measure.judge import Judges, load_judge
from cfgen.metrics.distribution import mmd_linear, mmd_rbf
from cfgen.metrics.morphometry import cohens_d
from cfgen.nets.condition import Condition
from cfgen.nets.controlnet import told
from cfgen.sim.graph import PLAIN
from cfgen.streams import Purpose, torch_stream

REGIONS = tuple(STRUCTURES.values())
SETS = ("decoded", "nothing", "conditions", "masks", "edited masks")
SMALL = 0.2
TOGETHER = 8


def edited_masks(people: People, numbers: Sequence[int], law: Law, engine: Engine) -> Tensor:
    """(n, K + 1, d, h, w): of each the masks of the one before, moved to the volumes that he would
    have at this one's age and sex; where they can't be moved, as they are."""
    control, device, found = engine.masked.control, str(engine.device), []
    assert control is not None
    for before, number in zip(np.roll(numbers, 1).tolist(), numbers, strict=True):
        image = people.images[before].astype(np.float32)
        here = {**measured(image, device), **people.values(before), "ad": 0, "aud": 0}
        opened = on_grid(image, image, np.zeros_like(image), device)
        maps = anatomy_of(engine, opened, control.regions)
        tissue = TissueEdits(Question(opened, law, here, [{**here, **people.values(number)}]))
        try:
            movement = tissue.moved(0).movement
            maps = moved_maps(maps, control.regions, opened.prepared, movement)
        except CfgenError as error:
            print(f"person {before}: {error}", flush=True)
        found.append(control.masks(maps))
    return torch.cat(found)


@torch.inference_mode()
def new_latents(
    models: Models, c: Tensor, masks: Tensor | None, guidance: float, steps: int
) -> Tensor:
    """(n, C, d, h, w), of the same noise for every set."""
    shape = tuple(models.latent_mean.coefficients.shape[1:])
    noise = torch.stack(
        [torch.randn(shape, generator=torch_stream(SEED, Purpose.NOBODY, n)) for n in range(len(c))]
    )
    how, made = Generation(sampler="ddim", steps=steps, guidance=guidance), []
    for some in torch.arange(len(c)).split(TOGETHER):
        asked = Condition(c[some], None if masks is None else masks[some]).to(models.device)
        made.append(sample_latent(models, asked, noise[some].to(models.device), how).cpu())
    return torch.cat(made)


def volumes_of(images: Tensor, device: str) -> np.ndarray:
    """(n, regions) mm3."""
    found = [measured(image.numpy(), device) for image in images]
    return np.array([[v[name] for name in REGIONS] for v in found])


def figures(
    judges: Judges, real: Tensor, made: Tensor, volumes: tuple[np.ndarray, np.ndarray]
) -> dict[str, float]:
    """Of a set (N, D, H, W); `volumes` are those of real and of made."""
    features = judges.embed(real), judges.embed(made)
    sets = set_figures(judges, real, made)
    test = mmd_rbf(*features, SEED)
    d = np.abs(cohens_d(volumes[1], volumes[0]))
    alike, alike_real = float(sets["ms-ssim"]), float(sets["ms-ssim real"])
    return {
        **{name: float(sets[name]) for name in ("fid", "kid")},
        "mmd": test.mmd2,
        "mmd p": test.p,
        "mmd voxels": mmd_linear(real.flatten(1).numpy(), made.flatten(1).numpy()),
        "ms-ssim %": 100 * abs(alike / alike_real - 1),
        "small d": float((d < SMALL).mean()),
        "largest d": float(d.max()),
    }


def own(real: np.ndarray, made: np.ndarray) -> dict[str, float]:
    """The slope of each region's log volume on that of the person it follows."""
    x, y = np.log(real), np.log(made)
    x, y = x - x.mean(0), y - y.mean(0)
    slopes = (x * y).sum(0) / (x**2).sum(0)
    return {f"own {name}": float(s) for name, s in zip(REGIONS, slopes, strict=True)}


def floor(judges: Judges, real: Tensor, volumes: np.ndarray) -> dict[str, float]:
    """What one half of the real people has of the other."""
    a, b = real[::2][: len(real) // 2], real[1::2][: len(real) // 2]
    return figures(judges, a, b, (volumes[::2], volumes[1::2]))


def kept(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """What a file has, or is given."""
    if not path.exists():
        write_atomically(path, partial(save_array, make()))
    return np.asarray(np.load(path))


def run(options: argparse.Namespace) -> None:
    out, device = options.out, pick_device(options.device)
    people, bundle = read_people(options.people), read_bundle(options.bundle)
    engine = load_engine(options.bundle, options.device, way=Way("masks", "residual"))
    models, control = engine.masked, engine.masked.control
    assert control is not None
    judges = load_judge(read_bundle(options.people / "judge"), device)
    latents, numbers = latents_of(options.people, options.split)
    numbers = numbers[: options.n]
    real = torch.from_numpy(people.images[numbers].astype(np.float32))
    c = torch.from_numpy(np.stack([bundle.schema.encode(people.values(n)) for n in numbers]))
    volumes = kept(out / "volumes.npy", lambda: volumes_of(real, options.device))

    def own_masks() -> Tensor:
        first = splits_of(options.people).index(options.split)
        count = max(numbers) - first + 1
        how = Reading(control.shape, control.detail, options.workers, options.device)
        made = masks_of(options.people, options.out, options.split, count, 1, how)[:, 0]
        mine = made[torch.tensor(numbers) - first].float()
        return told(mine)

    def others_masks() -> Tensor:
        law = Law(fitted(800, 5, PLAIN, "linear", None), "cohort")
        made = kept(
            out / "edited-masks.npy",
            lambda: edited_masks(people, numbers, law, engine).half().numpy(),
        )
        return torch.from_numpy(made).float()

    ways: dict[str, Callable[[], Tensor]] = {
        "decoded": lambda: latents[: len(numbers), 0].float(),
        "nothing": lambda: new_latents(models, c, None, 0.0, options.steps),
        "conditions": lambda: new_latents(models, c, None, options.guidance, options.steps),
        "masks": lambda: new_latents(models, c, own_masks(), options.guidance, options.steps),
        "edited masks": lambda: new_latents(
            models, c, others_masks(), options.guidance, options.steps
        ),
    }
    decoders = {"": models.decode}
    if options.decoder is not None:
        decoders[" (diffusion)"] = diffusion(read_bundle(options.decoder), device)
    table = Table(out / "sets.csv", ("set",))
    if not table.has(line := {"set": "floor"}):
        table.add(line | floor(judges, real, volumes))
    for way in options.sets:
        z0 = torch.from_numpy(kept(out / f"{way}.npy", lambda w=way: ways[w]().half().numpy()))
        for after, decode in decoders.items():
            if table.has(line := {"set": way + after}):
                continue
            images = torch.cat([decode(z[None].float().to(device))[:, 0].cpu() for z in z0])
            draw(out / f"{way}{after}.png", images)
            found = volumes_of(images, options.device)
            line |= figures(judges, real, images, (volumes, found))
            if way in ("decoded", "masks"):
                line |= own(volumes, found)
            table.add(line)


def diffusion(bundle: Bundle, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A decoder that starts every image from the same noise, as the tool does."""
    decoder = load_decoder(bundle, device)
    return lambda z0: decoder.decode(z0, [SEED] * len(z0), DECODING)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--split", default="test", help="of the people")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--steps", type=int, default=50, help="of DDIM")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--decoder", type=Path, help="a bundle of benchmarks/decoders.py")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    run(options)


if __name__ == "__main__":
    main()
