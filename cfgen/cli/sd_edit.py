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
from cfgen.cli.show import print_paths, setup
from cfgen.errors import UsageError


def sd_edit(
    image: Annotated[Path, typer.Option("--in", "-i", help="One scan (.nii, .nii.gz, .mgz).")],
    model: Annotated[
        Path, typer.Option("--model", help="Folder of Stable Diffusion, tuned by sd-tune or not.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Image to write, on the scan's grid.")],
    given: From = "",
    age: Annotated[str | None, typer.Option("--age", help="+7 or 77.")] = None,
    sex: Annotated[str | None, typer.Option("--sex", help="M or F.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="diagnosis=AD; repeatable.")
    ] = None,
    slices: Annotated[
        str,
        typer.Option("--slices", help="Which axial slices: percent of the way up, from:to."),
    ] = cfg.SD_SLICES,
    drift: Annotated[
        str | None,
        typer.Option(
            "--drift",
            help="Of every reverse step: a number from -1 to 1, or one a channel.",
            show_default="what the model was trained with",
        ),
    ] = None,
    sampler: Annotated[
        cfg.SdSampler, typer.Option("--sampler", help="ddim, or ddpm for InstructPix2Pix.")
    ] = "ddim",
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="Steps of the sampler.")
    ] = cfg.SD_EDIT.steps,
    guidance: Annotated[
        float, typer.Option("--guidance", help="Classifier-free guidance weight, above 1.")
    ] = cfg.SD_EDIT.guidance,
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
    from cfgen.diffusion.drift import parse_drift
    from cfgen.jobs.sd_edit import (
        Options,
        check_sampling,
        open_slices,
        output_files,
        sd_schema,
        words_of,
    )
    from cfgen.jobs.sd_edit import sd_edit as edit
    from cfgen.sd.model import open_model

    parts = open_model(model, pick_device(device))
    own = parts.card.trained if drift is None else parse_drift(drift)
    how = cfg.SdEdit(steps, guidance, image_guidance)
    options = Options(
        slices,
        own.check(parts.channels),
        sampler,
        how,
        render,
        not no_picture,
        seed,
        overwrite,
    )
    schema = sd_schema(parts)
    known = parse_values(schema, given, "--from") if given else {}
    changes = parse_interventions(schema, [age] if age else [], sex, sets or [])
    if len(changes) > 1:
        raise UsageError(f"--age {age}", f"{len(changes)} ages", "one age")
    change = changes[0]
    words = words_of(parts, image, known, change)
    check_sampling(parts, options)
    files = output_files(out, options)
    if dry_run:
        _, places = open_slices(parts, image, options)
        outputs = [str(path) for path in files.values()]
        said = {"slices": len(places), "prompt": words.prompt, "outputs": outputs}
        print(json.dumps(said, indent=2))
        return
    print_paths([str(p) for p in edit(parts, image, change, words, out, options).values()], as_json)
