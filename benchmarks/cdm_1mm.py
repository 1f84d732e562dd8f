"""What the paper's setting takes: a step of every stage at 1 mm, and a new brain.

    python benchmarks/cdm_1mm.py --manifest prepared/manifest.csv --out build/cdm

The manifest has two scans or more that `cfgen preprocess --grid cdm-1mm` wrote, in train and val,
of two ages and both sexes. Weights are random: time and memory do not depend on them. Each stage
runs in a process of its own, with checkpointing and without, which on a CPU takes 9 to 20 GiB and
minutes a step; on a GPU all of it a quarter of an hour.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from cfgen.bundle import half, net_config, new_bundle, write_part
from cfgen.causal.latent_mean import fit_plain_mean
from cfgen.config import Preprocess
from cfgen.nets.autoencoder import Autoencoder
from cfgen.nets.unet import UNet
from cfgen.train.cohort import training_schema
from cfgen.train.latent_diffusion import unet_config
from cfgen.train.presets import NETWORKS

PRESET = "cdm-1mm"
STAGES = {
    "train-ae": ("--preset", PRESET),
    "train-ldm": ("--preset", PRESET, "--bundle", "BUNDLE"),
    "finetune-cycle": ("--batch-size", "1", "--bundle", "BUNDLE"),
}


def random_bundle(path: Path, manifest: Path) -> None:
    """All that the stages need, with random weights."""
    torch.manual_seed(0)
    networks, schema = NETWORKS[PRESET], training_schema(manifest, ())
    bundle = new_bundle(path, Preprocess(grid=PRESET), schema, {"name": "random weights"})
    autoencoder = Autoencoder(networks.autoencoder)
    config = net_config(networks.autoencoder)
    bundle = write_part(bundle, "autoencoder", half(autoencoder), config, {})
    shape = (networks.autoencoder.latent_channels, 20, 24, 22)
    mean = fit_plain_mean(torch.randn(4, *shape), len(schema.names))
    bundle = write_part(bundle, "latent_mean", mean.tensors(), {"conditional": False}, {})
    size = unet_config(len(schema.names), shape, networks.diffusion)
    schedule = {"schedule": asdict(networks.diffusion.schedule)}
    write_part(bundle, "unet", half(UNet(size)), net_config(size) | schedule, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", default="0")
    parser.add_argument("--only-checkpointing", action="store_true")
    options = parser.parse_args()
    bundle = options.out / "random"
    if not (bundle / "unet.safetensors").exists():
        random_bundle(bundle, options.manifest)
    shared = ("--device", options.device, "--threads", options.threads, "--quiet")
    given = ("--manifest", str(options.manifest), "--out", str(options.out / "none"), "--dry-run")
    print("stage            checkpointing  M parameters  s a step  s of a core     GiB")
    for stage, own in STAGES.items():
        for saving in (True,) if options.only_checkpointing else (True, False):
            words = [str(bundle) if w == "BUNDLE" else w for w in own]
            words += ["--checkpointing"] if saving else []
            trial = json.loads(run(stage, *given, "--json", *words, *shared))
            print(
                f"{stage:16} {'yes' if saving else 'no':13} {trial['parameters'] / 1e6:13.1f}"
                f"{trial['seconds']:10.2f}{trial['core_seconds']:13.1f}{trial['memory_gib']:8.1f}",
                flush=True,
            )
    steps = 2
    asked = ("--age", "30", "--sex", "F", "--steps", str(steps), "--bundle", str(bundle))
    started = time.monotonic()
    # What random weights decode may be no brain, which is said when all is computed.
    where = ("--out", str(options.out / "brains"), "--overwrite")
    run("generate", *asked, *where, *shared, check=False)
    print(f"generate: {time.monotonic() - started:.1f} s for {steps} steps and decoding")


def run(*words: str, check: bool = True) -> str:
    command = [sys.executable, "-m", "cfgen.cli", *words]
    done = subprocess.run(command, check=check, stdout=subprocess.PIPE, text=True)
    return done.stdout


if __name__ == "__main__":
    main()
