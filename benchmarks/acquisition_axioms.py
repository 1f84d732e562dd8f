"""There and back, and by way of another: edits of the acquisition by a model of latents.

    python benchmarks/acquisition_axioms.py --out build/iap --model shifted

The first test people of benchmarks/acquisition_people.py who are edited to the whole protocol of
another, by the model of acquisition_diffusion.py, with the lock and without: what is left of the
way once an edit is taken back, and how far an edit that goes by a third one's protocol ends from
the one that goes straight. Both are over the change of the straight edit: of all people together,
and of the median person.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from acquisition_diffusion import DEEP, TOGETHER, Ways, brought, protocols_of
from acquisition_people import ANOTHER, CONFOUNDING, cases, read
from acquisition_scan import look
from torch import Tensor

from cfgen.bundle import Bundle, read_bundle
from cfgen.cli.options import DEFAULT_BUNDLE
from cfgen.edit.latent import Models, load_models
from cfgen.measure.segmenter import load_segmenter
from cfgen.nets.segmenter import Segmenter

CPU = torch.device("cpu")
# All of the noise, no guidance: nothing is drawn.
SETTING = DEEP[0]


def edited(
    models: Models,
    bundle: Bundle,
    images: Tensor,
    ways: Ways,
    lock: Segmenter | None,
) -> Tensor:
    """Images (N, D, H, W) from the first protocols to the second ones, inside the brain."""
    names = [str(n) for n in range(len(images))]
    made = brought(models, bundle.schema, images, ways, SETTING, names, TOGETHER["shifted"])
    guesses = torch.where(images > 0, made, 0.0)
    if lock is None:
        return guesses
    scans = [look(lock, image) for image in images]
    locked = [s.locked(s.contrast(g.numpy())) for s, g in zip(scans, guesses, strict=True)]
    return torch.from_numpy(np.stack(locked)).float()


def distances(a: Tensor, b: Tensor) -> np.ndarray:
    """Mean absolute differences inside the brains, a person each."""
    pairs = zip(a, b, strict=True)
    return np.array([float((x - y)[(x > 0) | (y > 0)].abs().mean()) for x, y in pairs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cohort", choices=tuple(CONFOUNDING), default="randomised")
    parser.add_argument("--model", default="shifted")
    parser.add_argument("--tested", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bundle = read_bundle(options.out / f"{options.model}-{options.cohort}")
    models = load_models(bundle, CPU)
    people = read(options.out / f"{options.cohort}-test")
    asked = [c for c in cases(people) if c.target == ANOTHER][: options.tested]
    images = torch.stack([people.image(c.scan) for c in asked])
    own, other = protocols_of(people, asked)
    # The protocol of the one after next.
    third = [*other[1:], *other[:1]]
    segmenter = load_segmenter(read_bundle(DEFAULT_BUNDLE), CPU)
    print("| | left of the way there and back | straight against by way of a third |")
    print("|---|---|---|")
    for name, lock in (("whole change", None), ("locked", segmenter)):
        straight = edited(models, bundle, images, (own, other), lock)
        change = distances(straight, images)
        back = edited(models, bundle, straight, (other, own), lock)
        halfway = edited(models, bundle, images, (own, third), lock)
        around = edited(models, bundle, halfway, (third, other), lock)
        off = distances(back, images), distances(around, straight)
        cells = [f"{d.sum() / change.sum():.2f}, {np.median(d / change):.2f}" for d in off]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
