"""`cfgen counterfactual`."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    Force,
    From,
    In,
    Manifest,
    Mask,
    NoPicture,
    Overwrite,
    Quiet,
    Rates,
    Seed,
    Strip,
    Threads,
    Verbose,
    drift_of,
    one_source,
)
from cfgen.cli.options import skull_strip as skull_strip_of
from cfgen.cli.show import end_batch, print_paths, setup
from cfgen.errors import EXIT_UNUSABLE_INPUT, UsageError

if TYPE_CHECKING:
    from cfgen.jobs.counterfactual_table import Asked

log = logging.getLogger("cfgen")


def counterfactual(
    image: In = None,
    manifest: Manifest = None,
    table: Annotated[
        Path | None,
        typer.Option("--table", help="Volumes of people instead of scans; see README."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Output image, a folder (needed for a manifest), or a table (for --table).",
            show_default="the current folder",
        ),
    ] = None,
    age: Annotated[
        list[str] | None,
        typer.Option("--age", help="+30, -10, 75 or a range -20:+40:10; repeatable."),
    ] = None,
    sex: Annotated[str | None, typer.Option("--sex", help="M or F.")] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="NAME=VALUE of a condition, hippocampus=-10% of a volume; repeatable."
        ),
    ] = None,
    rates: Rates = cfg.RATES,
    missing: Annotated[
        list[str] | None,
        typer.Option("--missing", help="With --table: NAME may have no value; repeatable."),
    ] = None,
    factual: From = "",
    mask: Mask = None,
    skull_strip: Strip = cfg.SKULL_STRIP,
    bundle: Bundle = DEFAULT_BUNDLE,
    by: Annotated[
        cfg.By | None,
        typer.Option(
            "--by",
            help="What makes it: the scan's tissue moved, a diffusion model under moved masks of "
            "regions, both, or that model under the conditions alone; see README.",
            show_default="tissue, where the bundle has its parts, else conditions",
        ),
    ] = None,
    render: Annotated[
        cfg.Render | None,
        typer.Option(
            "--render",
            help="How the edit reaches the scan; see README.",
            show_default="tissue where tissue is moved, else residual",
        ),
    ] = None,
    scale_head: Annotated[
        bool,
        typer.Option(
            "--scale-head", help="Let the head's size follow (sex), of scans and --table alike."
        ),
    ] = False,
    keep_noise: Annotated[
        bool,
        typer.Option("--keep-noise/--move-noise", help="Leave noise where the scanner put it."),
    ] = True,
    field: Annotated[
        bool,
        typer.Option("--field", help="Also write displacement and log-Jacobian, for ANTs."),
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            min=1,
            help="Steps of the sampler of latent edits.",
            show_default=str(cfg.EDIT.steps),
        ),
    ] = None,
    depth: Annotated[
        float | None,
        typer.Option(
            "--depth",
            min=0,
            max=1,
            help="Share of the noising a latent edit goes through; 0: none.",
            show_default=str(cfg.EDIT.depth),
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance",
            help="Guidance weight of latent edits.",
            show_default=str(cfg.EDIT.guidance),
        ),
    ] = None,
    guidance_from: Annotated[
        cfg.GuidedFrom | None,
        typer.Option(
            "--guidance-from",
            help="Guidance away from a model without conditions, from the factual ones, which "
            "exaggerates what changes alone, or from the factual masks, which exaggerates theirs.",
            show_default=cfg.EDIT.guidance_from,
        ),
    ] = None,
    decoder: Decoder = "kl",
    drift: Drift = None,
    samples: Annotated[
        int,
        typer.Option("--samples", min=1, help="Mean, SD and intervals of so many samples."),
    ] = 1,
    diff: Annotated[bool, typer.Option("--diff", help="Also write the signed difference.")] = False,
    reconstruction: Annotated[
        bool, typer.Option("--reconstruction", help="Also write what the model sees of the scan.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Also write a page to look at it; see 'report'.")
    ] = False,
    no_picture: NoPicture = False,
    device: Device = "auto",
    threads: Threads = 0,
    seed: Seed = cfg.SEED,
    overwrite: Overwrite = False,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Write what a scan would look like at another age or sex, on its own grid.

    Examples:

      cfgen counterfactual --in sub01.nii.gz --age +30

      cfgen counterfactual --in sub01.nii.gz --from age=62,sex=F --age -20:+20:10 --out edits/

      cfgen counterfactual --in sub01.nii.gz --age +30 --samples 8 --report

      cfgen counterfactual --manifest cohort.csv --sex F --out edits/

      cfgen counterfactual --in sub01.nii.gz --age +30 --by tissue+masks --bundle guided/

      cfgen counterfactual --table volumes.csv --age +15 --rates within --out answers.csv
    """
    setup(threads, verbose, quiet)
    latent: dict[str, Any] = {
        **{"steps": steps, "depth": depth, "guidance": guidance},
        **{"guidance_from": guidance_from, "drift": drift_of(drift)},
    }
    sampler = {name: value for name, value in latent.items() if value is not None}
    if table is not None:
        from cfgen.jobs.counterfactual_table import Asked, outputs

        if image is not None or mask is not None:
            raise UsageError("--table", "beside --in or --mask", "a table alone")
        of_images = {
            "--by": by is not None,
            "--render": render is not None,
            "--decoder": decoder != "kl",
            "--samples": samples > 1,
            "--move-noise": not keep_noise,
            **{"--field": field, "--diff": diff, "--reconstruction": reconstruction},
            "--report": report,
            **{f"--{name.replace('_', '-')}": True for name in sampler},
        }
        if any(of_images.values()):
            raise UsageError(
                next(n for n, on in of_images.items() if on), "beside --table", "scans"
            )
        asked = Asked(
            *(age or [], sex, change or [], factual, manifest, missing or []),
            rates=rates,
            seed=seed,
            scale_head=scale_head,
        )
        files = outputs(out, overwrite)
        worlds_failed = _answer(bundle, table, asked, None if dry_run else files)
        print_paths([str(file) for file in files], as_json)
        end_batch(worlds_failed, 0, table)
        return
    if missing:
        raise UsageError("--missing", "without --table", "--table")
    from cfgen.bundle import read_bundle
    from cfgen.data.conditions import parse_interventions, parse_values
    from cfgen.data.manifest import read_manifest
    from cfgen.edit.engine import load_engine, variables_of
    from cfgen.edit.way import way_of
    from cfgen.jobs.counterfactual_files import Options
    from cfgen.jobs.counterfactuals import check_plans, plan, run, single_row, write_outcome

    model = read_bundle(bundle)
    way = way_of(model, by, render)
    schema, settable = variables_of(model, way)
    interventions = parse_interventions(settable, age or [], sex, change or [])
    values = parse_values(schema, factual, "--from") if factual else {}
    one_source("counterfactual", image, manifest)
    method, mask = skull_strip_of(skull_strip, mask)
    if manifest is not None and (factual or mask):
        raise UsageError("counterfactual", "--from or --mask beside --manifest", "columns in it")
    if manifest is not None and out is None:
        raise UsageError("--out", "missing", "a folder for the outputs of a manifest")
    if image is not None:
        rows = [replace(single_row(image, mask), values=values)]
    else:
        assert manifest is not None
        rows = read_manifest(manifest, schema, keep_missing=True)
    plans = plan(rows, interventions, out)
    options = Options(
        by=by,
        render=render,
        decoder=decoder,
        edit=replace(cfg.EDIT, **sampler) if sampler else None,
        difference=diff,
        picture=not no_picture,
        overwrite=overwrite,
        seed=seed,
        force=force,
        samples=samples,
        reconstruction=reconstruction,
        report=report,
        rates=rates,
        scale_head=scale_head,
        keep_noise=keep_noise,
        field=field,
    )
    if dry_run:
        failed = check_plans(model, plans, options)
        for row in failed:
            source, error = row.source or str(row.image), row.extra["error"]
            log.error("%s", error if error.startswith(source) else f"{source}: {error}")
        unusable = {row.image for row in failed}
        going = [p for p in plans if p.row.image not in unusable]
        print_paths([str(path) for p in going for path in p.outputs.values()], as_json)
        if failed and image is not None:
            raise typer.Exit(EXIT_UNUSABLE_INPUT)
        end_batch(len(failed), 0, manifest)
        return
    engine = load_engine(bundle, device, method, way)
    outcome = run(engine, plans, options, "--from", image is None)
    if manifest is not None:
        assert out is not None
        for path in write_outcome(outcome, plans, out):
            log.info("wrote %s", path)
    print_paths([str(row.image) for rows in outcome.done for row in rows], as_json)
    end_batch(len(outcome.failed), len(outcome.left), manifest)


def _answer(bundle: Path, table: Path, asked: Asked, files: tuple[Path, Path] | None) -> int:
    """`--table`: what is asked is checked, answered where there are `files` to write to; how many
    worlds failed."""
    from cfgen.bundle import read_bundle
    from cfgen.causal.scm import load_scm
    from cfgen.jobs.counterfactual_table import question, write

    model = read_bundle(bundle)
    scm = load_scm(model)
    whole = question(scm, model.schema, table, asked)
    return 0 if files is None else len(write(model, scm, table, whole, files).failed)
