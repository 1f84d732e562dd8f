"""The shipped autoencoder with a linear level under it, for benchmarks/acquisition_diffusion.py.

    python benchmarks/acquisition_autoencoder.py --out build/iap

OUT/folded has latents of 16 mm voxels, principal components of the shipped autoencoder's latents of
the first training people. Prints the PSNR inside the brains of those who end the training.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from acquisition_people import VAL, read
from cycle_autoencoder import COMPONENTS_OF, FOLDED, encoded, fold

from cfgen.bundle import half, net_config, new_bundle, write_part
from cfgen.config import PREPROCESS
from cfgen.data.conditions import default_schema
from cfgen.metrics.image import psnr
from cfgen.nets.autoencoder import Autoencoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cohort", default="randomised")
    options = parser.parse_args()
    torch.set_num_threads(1)
    people = read(options.out / options.cohort)
    images = torch.from_numpy(np.array(people.images[: VAL + COMPONENTS_OF])).float()
    net = Autoencoder(FOLDED).eval()
    fold(net, images[VAL:])
    bundle = new_bundle(options.out / "folded", PREPROCESS, default_schema(), {})
    write_part(bundle, "autoencoder", half(net), net_config(net.config), {})
    with torch.inference_mode():
        decoded = [net.decode(z0[None])[0, 0].float() for z0 in encoded(net, images[:VAL])]
    pairs = [(d.numpy(), i.numpy()) for d, i in zip(decoded, images[:VAL], strict=True)]
    found = [psnr(d, i, i > 0) for d, i in pairs]
    print(f"PSNR inside brains {np.mean(found):.1f} dB")


if __name__ == "__main__":
    main()
