"""`cfgen fit-scm`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cfgen import config as cfg
from cfgen.cli.options import (
    DEFAULT_BUNDLE,
    AsJson,
    Bundle,
    Config,
    DryRun,
    OutBundle,
    Overwrite,
    Quiet,
    Seed,
    Threads,
    Verbose,
)
from cfgen.cli.show import setup
from cfgen.errors import UsageError

_KNOTS = ",".join(f"{age:g}" for age in cfg.AGE_KNOTS)


def fit_scm(
    table: Annotated[
        Path,
        typer.Option("--table", "--manifest", help="CSV or TSV: age, sex, ..., and volumes."),
    ],
    out: OutBundle,
    volumes: Annotated[
        Path | None,
        typer.Option("--volumes", help="Volumes as 'cfgen segment --volumes' writes them."),
    ] = None,
    graph: Annotated[
        Path | None,
        typer.Option(
            "--graph",
            help="Causal graph: .toml, .dot, .gv, .dagitty, .gml.",
            show_default="cfgen's",
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            "--init",
            help="Fit nothing: move this bundle's law to few people in closed form.",
        ),
    ] = None,
    mechanism: Annotated[
        cfg.ScmMechanism,
        typer.Option("--mechanism", help="linear (in logarithms, with splines) or flow."),
    ] = cfg.SCM_FIT.mechanism,
    prior: Annotated[
        str,
        typer.Option(
            "--prior",
            help="Bundle whose law weak effects are shrunk towards, or none.",
            show_default="the shipped one",
        ),
    ] = "",
    missing: Annotated[
        list[str] | None,
        typer.Option("--missing", help="Variable whose missing values are averaged over; repeat."),
    ] = None,
    knots: Annotated[str, typer.Option("--knots", help="Ages where a course may bend.")] = _KNOTS,
    members: Annotated[
        int, typer.Option("--members", min=0, help="Fits to resampled people, for intervals.")
    ] = cfg.SCM_FIT.members,
    check: Annotated[
        bool, typer.Option("--check", help="Print the slopes by decade beside healthy people's.")
    ] = False,
    bundle: Bundle = DEFAULT_BUNDLE,
    threads: Threads = 0,
    seed: Seed = cfg.SEED,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Add a causal model of region volumes to a bundle, and print its equations.

    The table has a line a visit: a subject, conditions, and volumes (mm3) in cfgen's, DLMUSE's or
    FreeSurfer's names. Rows of another split than train are left out.

    Examples:

      cfgen fit-scm --table cohort.csv --out fitted/ --check

      cfgen fit-scm --table cohort.csv --volumes volumes.csv --graph graph.dot --out fitted/

      cfgen fit-scm --table cohort.csv --mechanism flow --missing amygdala --out fitted/

      cfgen fit-scm --table few.csv --volumes volumes.csv --init bundle/ --bundle ours/ --out ours2/
    """
    setup(threads, verbose, quiet)
    settings = replace(
        cfg.SCM_FIT,
        mechanism=mechanism,
        age_knots=_ages(knots),
        members=members,
        seed=seed,
    )
    from cfgen.bundle import read_bundle
    from cfgen.causal.scm import PART
    from cfgen.data.names import check_folder
    from cfgen.jobs import fit_scm as job

    check_folder(out)
    read_bundle(bundle)
    if init is not None:
        given = {
            "--graph": graph is not None,
            "--prior": bool(prior),
            "--missing": bool(missing),
            "--check": check,
            "--mechanism or --knots": settings != replace(cfg.SCM_FIT, members=members, seed=seed),
        }
        if any(given.values()):
            name = next(n for n, on in given.items() if on)
            raise UsageError("--init", f"{name} beside it", "none: the law is that of --init")
        from cfgen.jobs.adapt_scm import check_few, move_law

        if dry_run:
            people = check_few(table, volumes, init)
            print(f"{people} people")
            return
        moved = move_law(table, volumes, init, bundle, out, overwrite=overwrite)
        print(json.dumps(moved.json(), indent=2) if as_json else f"{moved.text()}\n{out}")
        return
    cohort = job.read_inputs(job.Inputs(table, volumes, graph, tuple(missing or ())))
    normative = None
    if prior not in ("", "none"):
        normative = job.read_prior(Path(prior))
    elif prior == "" and PART in read_bundle(DEFAULT_BUNDLE).parts:
        normative = job.read_prior(DEFAULT_BUNDLE)
    if dry_run:
        print(f"{len(set(cohort.subjects))} people; {', '.join(cohort.graph.names)}")
        return
    fitted = job.fit(cohort, bundle, out, settings, normative, overwrite=overwrite)
    if as_json:
        print(json.dumps(job.describe_json(fitted, with_slopes=check), indent=2))
    else:
        print(job.describe(fitted, with_slopes=check))
        print(fitted.bundle.path)


def _ages(text: str) -> tuple[float, ...]:
    try:
        ages = tuple(float(part) for part in text.split(","))
    except ValueError:
        ages = ()
    if not ages or list(ages) != sorted(set(ages)):
        raise UsageError("--knots", f"'{text}'", "rising ages, such as 23,40,58,75")
    return ages
