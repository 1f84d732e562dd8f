"""`cfgen generate`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from cfgen import config as cfg
from cfgen.cli.options import (
    DEFAULT_BUNDLE,
    AsJson,
    Bundle,
    Config,
    Decoder,
    Device,
    Drift,
    DryRun,
    NoPicture,
    Overwrite,
    Quiet,
    Seed,
    Shard,
    Threads,
    Verbose,
    drift_of,
    shard_of,
)
from cfgen.cli.show import end_batch, print_paths, setup
from cfgen.errors import UsageError

log = logging.getLogger("cfgen")


def generate(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the brains.")],
    age: Annotated[
        list[str] | None, typer.Option("--age", help="30, or a range 5:100:5; repeatable.")
    ] = None,
    sex: Annotated[str | None, typer.Option("--sex", help="M, F or M,F.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE or NAME=VALUE,VALUE of a condition; repeatable."),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("--n", min=1, help="Brains of each combination.", show_default="1"),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest", help="Table with a column a condition instead; subject, seed optional."
        ),
    ] = None,
    bundle: Bundle = DEFAULT_BUNDLE,
    sampler: Annotated[
        cfg.Sampling, typer.Option("--sampler", help="ddim or dpm++ (DPM-Solver++ 2M).")
    ] = cfg.GENERATION.sampler,
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="Steps of the sampler.")
    ] = cfg.GENERATION.steps,
    guidance: Annotated[
        float, typer.Option("--guidance", help="Classifier-free guidance weight.")
    ] = cfg.GENERATION.guidance,
    drift: Drift = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            "--masks",
            help="Label map on the model grid (*_desc-model_dseg of preprocess) that all follow.",
        ),
    ] = None,
    decoder: Decoder = "kl",
    shard: Shard = "1/1",
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
    """Make brains of nobody by age, sex and other conditions, in the template's space.

    A brain depends on its conditions, its seed, the bundle and the sampler alone, not on the others
    of its list or shard. Seeds come from --seed and the brain's name, or from the table.

    Examples:

      cfgen generate --age 5:100:5 --sex M,F --n 2 --out brains/

      cfgen generate --age 70 --sex F --n 100 --sampler dpm++ --steps 20 --out brains/ --shard 2/4

      cfgen generate --manifest people.csv --out brains/

      cfgen generate --age 70 --sex F --masks map_dseg.nii.gz --bundle guided/ --out brains/
    """
    setup(threads, verbose, quiet)
    from cfgen.bundle import read_bundle
    from cfgen.data.wanted import asked_for, read_wanted
    from cfgen.device import pick_device
    from cfgen.jobs.generate import (
        Options,
        check_generation,
        draw_sheet,
        generate_people,
        warn,
        write_outcome,
    )

    model = read_bundle(bundle)
    if manifest is None:
        people = asked_for(model.schema, age or [], sex, sets or [], n or 1, seed)
    elif age or sex or sets or n:
        raise UsageError("--manifest", "beside --age, --sex, --set or --n", "one or the other")
    else:
        people = read_wanted(manifest, model.schema, seed)
    how = cfg.Generation(sampler, steps, guidance, drift_of(drift))
    options = Options(how, overwrite, masks, decoder)
    images = check_generation(model, people, out, options)
    start, stop = shard_of(shard, len(people))
    warn(model.schema, people[start:stop])
    if dry_run:
        print_paths([str(path) for path in images[start:stop]], as_json)
        return
    part = people[start:stop]
    outcome = generate_people(model, part, out, pick_device(device), options)
    for path in write_outcome(outcome, part, out):
        log.info("wrote %s", path)
    if not no_picture:
        draw_sheet(out, model.schema)
    print_paths([str(row.image) for row in outcome.done], as_json)
    end_batch(len(outcome.failed), len(outcome.left), manifest or out)
