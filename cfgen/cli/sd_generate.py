"""`cfgen sd-generate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cfgen import config as cfg
from cfgen.cli.options import (
    AsJson,
    Config,
    Device,
    DryRun,
    Overwrite,
    Quiet,
    Seed,
    Threads,
    Verbose,
)
from cfgen.cli.sd_options import Drift, Guidance, Model, Sampler, Steps
from cfgen.cli.show import print_paths, setup


def sd_generate(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the slices.")],
    age: Annotated[
        list[str] | None, typer.Option("--age", help="30, or a range 5:100:5; repeatable.")
    ] = None,
    sex: Annotated[str | None, typer.Option("--sex", help="M, F or M,F.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="diagnosis=CN or diagnosis=CN,AD.")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Slices of each combination.")] = 1,
    drift: Drift = None,
    sampler: Sampler = "ddim",
    steps: Steps = cfg.SD_EDIT.steps,
    guidance: Guidance = cfg.SD_EDIT.guidance,
    device: Device = "auto",
    threads: Threads = 0,
    seed: Seed = cfg.SEED,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Make axial slices of nobody by Stable Diffusion (needs the extra cfgen[sd]).

    PNG with a record each, slices.csv and a sheet, under the wording that the model was trained
    with. What is not asked for is not told.

    Examples:

      cfgen sd-generate --model mri/ --age 60:80:10 --sex M,F --set diagnosis=CN,AD --out slices/

      cfgen sd-generate --model sd-v1-4/ --n 8 --drift 0.1 --out drifting/
    """
    setup(threads, verbose, quiet)
    from cfgen.sd.extra import require_extra

    require_extra()
    from cfgen.device import pick_device
    from cfgen.jobs.sd_edit import check_sampling, drift_of, sd_schema
    from cfgen.jobs.sd_generate import check_slices, people_of, prompt_of
    from cfgen.jobs.sd_generate import sd_generate as generate
    from cfgen.sd.model import open_model
    from cfgen.sd.sampling import Sampling

    parts = open_model(model, pick_device(device))
    sampling = Sampling(drift_of(drift, parts), sampler, cfg.SdEdit(steps, guidance))
    check_sampling(parts, sampling)
    people = people_of(sd_schema(parts), age or [], sex, sets or [], n, seed)
    images = check_slices(parts, people, out, overwrite)
    if dry_run:
        said = {str(i): prompt_of(parts, p) for i, p in zip(images, people, strict=True)}
        print(json.dumps(said, indent=2))
        return
    print_paths([str(p) for p in generate(parts, people, out, sampling, overwrite)], as_json)
