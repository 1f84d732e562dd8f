"""`cfgen sd-edit`."""

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
    From,
    NoPicture,
    Overwrite,
    Quiet,
    Seed,
    Threads,
    Verbose,
)
from cfgen.cli.sd_options import Drift, Guidance, Model, Sampler, Slices, Steps
from cfgen.cli.show import print_paths, setup
from cfgen.errors import UsageError


def sd_edit(
    image: Annotated[Path, typer.Option("--in", "-i", help="One scan (.nii, .nii.gz, .mgz).")],
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="Image to write, on the scan's grid.")],
    given: From = "",
    age: Annotated[str | None, typer.Option("--age", help="+7 or 77.")] = None,
    sex: Annotated[str | None, typer.Option("--sex", help="M or F.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="diagnosis=AD; repeatable.")
    ] = None,
    slices: Slices = cfg.SD_SLICES,
    drift: Drift = None,
    sampler: Sampler = "ddim",
    steps: Steps = cfg.SD_EDIT.steps,
    guidance: Guidance = cfg.SD_EDIT.guidance,
    image_guidance: Annotated[
        float,
        typer.Option("--image-guidance", help="InstructPix2Pix: how much the scan weighs."),
    ] = cfg.SD_EDIT.image_guidance,
    render: Annotated[
        cfg.SdRender,
        typer.Option("--render", help="residual (the scan plus the change) or latent (as it is)."),
    ] = cfg.SD_RENDER,
    no_picture: NoPicture = False,
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
    """Edit axial slices of a scan by Stable Diffusion (needs the extra cfgen[sd]).

    A model that sd-tune --pairs made follows an instruction (InstructPix2Pix); any other is edited
    by Pix2Pix-Zero. Slices are edited one by one and written back on the scan's own grid, with a
    sidecar that says synthetic; slices that were not edited keep every voxel.

    Examples:

      cfgen sd-edit --in sub01.nii.gz --model ageing/ --from age=70,sex=F,diagnosis=CN --age +7 \\
        --out sub01_older.nii.gz

      cfgen sd-edit --in sub01.nii.gz --model mri/ --from age=70,sex=F,diagnosis=CN \\
        --set diagnosis=AD --slices 50 --out sub01_AD.nii.gz
    """
    setup(threads, verbose, quiet)
    from cfgen.sd.extra import require_extra

    require_extra()
    from cfgen.data.conditions import parse_interventions, parse_values
    from cfgen.device import pick_device
    from cfgen.jobs.sd_edit import (
        Options,
        check_method,
        check_sampling,
        drift_of,
        open_slices,
        output_files,
        sd_schema,
        words_of,
    )
    from cfgen.jobs.sd_edit import sd_edit as edit
    from cfgen.sd.model import open_model
    from cfgen.sd.sampling import Sampling

    parts = open_model(model, pick_device(device))
    how = cfg.SdEdit(steps, guidance, image_guidance)
    sampling = Sampling(drift_of(drift, parts), sampler, how)
    options = Options(slices, sampling, render, not no_picture, seed, overwrite)
    schema = sd_schema(parts)
    known = parse_values(schema, given, "--from") if given else {}
    changes = parse_interventions(schema, [age] if age else [], sex, sets or [])
    if len(changes) > 1:
        raise UsageError(f"--age {age}", f"{len(changes)} ages", "one age")
    change = changes[0]
    words = words_of(parts, image, known, change)
    check_sampling(parts, sampling)
    check_method(parts, sampling)
    files = output_files(out, options)
    if dry_run:
        _, places = open_slices(parts, image, options)
        outputs = [str(path) for path in files.values()]
        said = {"slices": len(places), "prompt": words.prompt, "outputs": outputs}
        print(json.dumps(said, indent=2))
        return
    print_paths([str(p) for p in edit(parts, image, change, words, out, options).values()], as_json)
