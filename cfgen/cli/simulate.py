"""`cfgen simulate`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from cfgen import config as cfg
from cfgen.cli.options import (
    AsJson,
    Config,
    DryRun,
    Grid,
    Overwrite,
    Quiet,
    Seed,
    Shard,
    Threads,
    Verbose,
    shard_of,
)
from cfgen.cli.show import setup

log = logging.getLogger("cfgen")


def simulate(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the cohort.")],
    preset: Annotated[
        str,
        typer.Option("--preset", help="lifespan, elderly-ad, adolescents, aud, iap or mixed."),
    ] = "lifespan",
    n: Annotated[int, typer.Option("--n", min=1, help="Number of subjects.")] = 20,
    truth: Annotated[
        list[str] | None,
        typer.Option(
            "--truth", help="Also the true counterfactual: age=+30 or sex=F,ad=0.8; repeatable."
        ),
    ] = None,
    truth_by: Annotated[
        cfg.TruthBy,
        typer.Option(
            "--truth-by",
            help="anatomy (made anew) or partial-volumes (borders shift, nothing moves).",
        ),
    ] = "anatomy",
    grid: Grid = cfg.DEFAULT_GRID,
    visits: Annotated[int, typer.Option("--visits", min=1, help="Scans of each subject.")] = 1,
    confounding: Annotated[
        float,
        typer.Option("--confounding", min=0, max=1, help="How far age decides the scanner."),
    ] = 0.0,
    stress: Annotated[
        list[str] | None,
        typer.Option(
            "--stress",
            help="heteroscedastic, age-sex, skewed, confounded or measured; repeatable.",
        ),
    ] = None,
    shard: Shard = "1/1",
    threads: Threads = 0,
    seed: Seed = cfg.SEED,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Make a cohort of brains that never lived, whose true counterfactuals are known.

    Volumes follow a structural causal model, anatomy meets them, and scanner physics makes the
    image. Labels, posteriors and volumes lie beside every image, and say what they truly are.

    Examples:

      cfgen simulate --preset lifespan --n 100 --truth age=+30 --out cohort/

      cfgen simulate --preset iap --n 50 --truth manufacturer=GE --truth field_tesla=1.5 --out iap/

      cfgen simulate --preset mixed --n 50 --truth age=+20 --truth-by partial-volumes --out phantom/
    """
    setup(threads, verbose, quiet)
    from cfgen.data.conditions import parse_interventions
    from cfgen.data.names import check_folder
    from cfgen.jobs.simulate import Plan, plan_subjects
    from cfgen.jobs.simulate import simulate as job
    from cfgen.sim import cohort
    from cfgen.sim.graph import graph, stress_of

    variables = cohort.schema(graph())
    truths = [parse_interventions(variables, sets=t.split(","))[0] for t in truth or []]
    start, stop = shard_of(shard, n)
    plan = Plan(
        cohort.preset(preset),
        start,
        stop,
        tuple(truths),
        seed,
        grid,
        visits,
        confounding,
        stress_of(stress or []),
        truth_by,
    )
    if dry_run:
        subjects, counterfactuals, left_out = plan_subjects(plan)
        for text in left_out:
            log.warning("left out: %s", text)
        print(f"{len(subjects)} images, {len(counterfactuals)} true counterfactuals")
        return
    check_folder(out)
    simulated = job(plan, out, overwrite=overwrite)
    if as_json:
        summary = {
            "preset": preset,
            "seed": seed,
            "images": [str(r.image) for r in simulated.rows],
            "truths": [str(r.image) for r in simulated.truths],
            "left_out": simulated.left_out,
        }
        print(json.dumps(summary, indent=2))
    else:
        print(out / "manifest.csv")
