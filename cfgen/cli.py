"""The command line: read options, call one job, print what it wrote.

Heavy libraries are imported inside the commands, so that `cfgen --help` answers at once. Results go
to standard output, progress and warnings to standard error.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from cfgen import __version__, config
from cfgen.errors import (
    EXIT_OUT_OF_MEMORY,
    EXIT_SOME_FAILED,
    EXIT_UNUSABLE_INPUT,
    CfgenError,
    Interrupted,
    UsageError,
)

DEFAULT_BUNDLE = Path(__file__).parent / "bundles" / "default"

app = typer.Typer(
    name="cfgen",
    help="Counterfactual brain MRI: what would this brain look like at another age or sex?\n\n"
    "Research use, not for diagnosis.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

log = logging.getLogger("cfgen")


Bundle = Annotated[Path, typer.Option("--bundle", help="Model bundle (default: the shipped one).")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Threads = Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0 takes all.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random number.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but warnings.")]
In = Annotated[Path | None, typer.Option("--in", "-i", help="One scan (.nii, .nii.gz, .mgz).")]
Manifest = Annotated[
    Path | None,
    typer.Option("--manifest", help="CSV or TSV with a row a scan, or BIDS participants.tsv."),
]
Mask = Annotated[
    Path | None, typer.Option("--mask", help="Brain mask or label map on the scan's grid.")
]
Strip = Annotated[
    str,
    typer.Option(
        "--skull-strip",
        help=f"How the brain is found: {', '.join(get_args(config.SkullStrip))} or mask:FILE.",
    ),
]
Grid = Annotated[str, typer.Option("--grid", help=" or ".join(config.GRIDS))]
Force = Annotated[
    bool, typer.Option("--force", help="Go on with scans that the gate refuses; recorded.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, compute nothing.")]


def _stopped(left: int, manifest: object) -> None:
    """Ends a batch that a signal stopped with the exit code that says so."""
    if left:
        said = f"stopped with {left} scan{'s' if left > 1 else ''} left"
        raise Interrupted(manifest, said, fix="the same command goes on from there")


def _setup(threads: int, verbose: bool, quiet: bool) -> None:
    """Logging to standard error and the number of threads of every library."""
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    log.handlers = [logging.StreamHandler(sys.stderr)]
    log.setLevel(level)
    log.propagate = False
    count = threads or len(os.sched_getaffinity(0))
    for name in config.THREAD_VARIABLES:
        os.environ[name] = str(count)
    # Large pages halve the time that convolutions wait for fresh memory.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def counterfactual(
    image: In = None,
    manifest: Manifest = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Output image, or a folder (needed for a manifest)."),
    ] = None,
    age: Annotated[
        list[str] | None,
        typer.Option("--age", help="+30, -10, 75 or a range -20:+40:10; repeatable."),
    ] = None,
    sex: Annotated[str | None, typer.Option("--sex", help="M or F.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE of any condition; repeatable.")
    ] = None,
    factual: Annotated[
        str, typer.Option("--from", help="What is known of the scan: age=62,sex=F.")
    ] = "",
    mask: Mask = None,
    skull_strip: Strip = config.SKULL_STRIP,
    bundle: Bundle = DEFAULT_BUNDLE,
    render: Annotated[
        config.Render, typer.Option("--render", help="How the edit reaches the scan; see README.")
    ] = config.RENDER,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Steps of the sampler.")
    ] = None,
    depth: Annotated[
        float | None,
        typer.Option(
            "--depth", min=0, max=1, help="Share of the noising an edit goes through; 0: none."
        ),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", help="Classifier-free guidance weight.")
    ] = None,
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
    no_picture: Annotated[bool, typer.Option("--no-picture", help="Write no PNG.")] = False,
    device: Device = "auto",
    threads: Threads = 0,
    seed: Seed = config.SEED,
    overwrite: Overwrite = False,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write what a scan would look like at another age or sex, on its own grid.

    Examples:

      cfgen counterfactual --in sub01.nii.gz --age +30

      cfgen counterfactual --in sub01.nii.gz --from age=62,sex=F --age -20:+20:10 --out edits/

      cfgen counterfactual --in sub01.nii.gz --age +30 --samples 8 --report

      cfgen counterfactual --manifest cohort.csv --sex F --out edits/
    """
    _setup(threads, verbose, quiet)
    from cfgen.bundle import read_bundle
    from cfgen.data.conditions import parse_interventions, parse_values
    from cfgen.data.manifest import read_manifest
    from cfgen.jobs.batch import plan, single_row

    schema = read_bundle(bundle).schema
    interventions = parse_interventions(schema, age or [], sex, change or [])
    values = parse_values(schema, factual, "--from") if factual else {}
    _one_source("counterfactual", image, manifest)
    how, mask = _skull_strip(skull_strip, mask)
    if manifest is not None and (factual or mask):
        raise UsageError("counterfactual", "--from or --mask beside --manifest", "columns in it")
    if manifest is not None and out is None:
        raise UsageError("--out", "missing", "a folder for the outputs of a manifest")
    if image is not None:
        rows = [replace(single_row(image, mask), values=values)]
    else:
        assert manifest is not None
        rows = read_manifest(manifest, schema)
    plans = plan(rows, interventions, out)
    if dry_run:
        _print([str(path) for p in plans for path in p.outputs.values()], as_json)
        return

    from cfgen.jobs.batch import run, write_outcome
    from cfgen.jobs.counterfactual import Options, load_engine

    asked: dict[str, Any] = {"steps": steps, "depth": depth, "guidance": guidance}
    options = Options(
        render=render,
        edit=replace(config.EDIT, **{k: v for k, v in asked.items() if v is not None}),
        difference=diff,
        picture=not no_picture,
        overwrite=overwrite,
        seed=seed,
        force=force,
        samples=samples,
        reconstruction=reconstruction,
        report=report,
    )
    engine = load_engine(bundle, device, how)
    outcome = run(engine, plans, options, "--from" if image else str(manifest), image is None)
    if manifest is not None:
        assert out is not None
        for path in write_outcome(outcome, out):
            log.info("wrote %s", path)
    _print([str(row.image) for row in outcome.done], as_json)
    _stopped(len(outcome.left), manifest)
    if outcome.failed:
        raise typer.Exit(EXIT_SOME_FAILED)


@app.command()
def report(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Page to write, or a folder for a manifest.")
    ],
    image: Annotated[
        Path | None,
        typer.Option("--in", "-i", help="A counterfactual, with its sidecar beside it."),
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="What 'counterfactual --manifest' wrote.")
    ] = None,
    factual: Annotated[
        Path | None,
        typer.Option("--factual", help="The scan that it was made of, if it is not beside it."),
    ] = None,
    targets: Annotated[
        Path | None,
        typer.Option("--targets", help="Volumes to reach: a table as 'segment --volumes' writes."),
    ] = None,
    no_regions: Annotated[
        bool, typer.Option("--no-regions", help="Measure no volumes: pictures alone, faster.")
    ] = False,
    bundle: Bundle = DEFAULT_BUNDLE,
    device: Device = "auto",
    threads: Threads = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write a page to look at a counterfactual: pictures, regions, flags, methods, provenance.

    One HTML file a counterfactual, to open in any browser; it needs no server and no network. With
    a manifest, OUT/index.html lists all of them with thumbnails, to sort and filter.

    Examples:

      cfgen report --in edits/sub01_age+30.nii.gz --factual sub01.nii.gz --out sub01.html

      cfgen report --manifest edits/manifest.csv --out report/
    """
    _setup(threads, verbose, quiet)
    from cfgen.bundle import read_bundle
    from cfgen.data.manifest import read_manifest
    from cfgen.jobs.device import pick_device
    from cfgen.jobs.report import Ruler, read_targets, report_one
    from cfgen.jobs.report_group import report_group

    _one_source("report", image, manifest)
    found = read_bundle(bundle)
    ruler = Ruler.of(None if no_regions else found, pick_device(device))
    if image is not None:
        wanted = read_targets(targets) if targets else {}
        report_one(image, factual, out, ruler, wanted, overwrite)
        _print([str(out)], as_json)
        return
    assert manifest is not None
    if factual or targets:
        raise UsageError("report", "--factual or --targets beside --manifest", "--in")
    result = report_group(read_manifest(manifest, found.schema), out, ruler, overwrite)
    _print([str(result.index)], as_json)
    if result.failed:
        raise typer.Exit(EXIT_SOME_FAILED)


@app.command()
def info(
    bundle: Annotated[Path, typer.Argument(help="Model bundle.")] = DEFAULT_BUNDLE,
    as_json: AsJson = False,
) -> None:
    """Print what a bundle holds, where it was trained, and what this machine offers."""
    _setup(0, False, True)
    from cfgen.jobs.info import describe, describe_json

    print(json.dumps(describe_json(bundle), indent=2) if as_json else describe(bundle))


@app.command()
def preprocess(
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for prepared scans, or with --check for a CSV."),
    ] = None,
    image: In = None,
    manifest: Manifest = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether the scans can be used, and why not.")
    ] = False,
    mask: Mask = None,
    skull_strip: Strip = config.SKULL_STRIP,
    grid: Grid = config.DEFAULT_GRID,
    bundle: Bundle = DEFAULT_BUNDLE,
    device: Device = "auto",
    threads: Threads = 0,
    overwrite: Overwrite = False,
    force: Force = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Bring scans to the model grid: brain, bias field, affine to the template, intensity.

    Writes the prepared image, the brain mask, a picture to check and the way back (see 'undo') for
    each scan, and a manifest for training. Scans that are prepared already are kept. The bundle
    finds the brain in scans without a mask, and its training card is what scans are checked by.

    Examples:

      cfgen preprocess --manifest cohort.csv --out prepared/

      cfgen preprocess --check --in sub01.nii.gz
    """
    _setup(threads, verbose, quiet)
    from cfgen.bundle import read_bundle
    from cfgen.data.conditions import default_schema
    from cfgen.data.manifest import read_manifest
    from cfgen.jobs.batch import single_row
    from cfgen.jobs.brain import BrainFinder, brain_finder
    from cfgen.jobs.device import pick_device, worker_count
    from cfgen.jobs.gate import Gate
    from cfgen.jobs.preprocess import preprocess as job

    _one_source("preprocess", image, manifest)
    how, mask = _skull_strip(skull_strip, mask)
    if image is not None:
        rows = [single_row(image, mask)]
    else:
        assert manifest is not None
        rows = read_manifest(manifest, default_schema())
    found = read_bundle(bundle)
    finder = BrainFinder(how)
    if any(row.mask is None and row.labels is None for row in rows):
        finder = brain_finder(found, how, pick_device(device))
    recipe = config.Preprocess(grid=grid)
    if check:
        _check(rows, recipe, finder, found.card, out, overwrite, as_json, image is not None)
        return
    if out is None:
        raise UsageError("--out", "missing", "a folder for the prepared scans")
    keep_going = manifest is not None
    gate = Gate(found.card, force)
    result = job(
        rows,
        out,
        recipe,
        finder,
        gate,
        keep_going=keep_going,
        overwrite=overwrite,
        workers=worker_count(finder.device, len(rows)),
    )
    _print([str(row.image) for row in result.done], as_json)
    if result.failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def _check(
    rows: list[Any],
    recipe: config.Preprocess,
    finder: Any,
    card: Any,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    single: bool,
) -> None:
    """Print a verdict a scan; exit 3 when the one scan, 1 when some scan is refused."""
    from cfgen.data.table import write_table
    from cfgen.data.volume import refuse_existing
    from cfgen.jobs.check import check_scans

    table = out / "check.csv" if out is not None else None
    if table is not None:
        refuse_existing(table, overwrite)
    checked = []
    for one in check_scans(rows, recipe, finder, card):
        checked.append(one)
        if not as_json:
            print(one.line(), flush=True)
    lines = [one.table_row() for one in checked]
    if as_json:
        print(json.dumps({"scans": lines}, indent=2))
    if table is not None:
        write_table(table, lines)
    if any(one.verdict == "refuse" for one in checked):
        raise typer.Exit(EXIT_UNUSABLE_INPUT if single else EXIT_SOME_FAILED)


@app.command()
def segment(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Label map, or a folder for a manifest or folder.")
    ],
    image: Annotated[
        Path | None, typer.Option("--in", "-i", help="One scan, or a folder of scans.")
    ] = None,
    manifest: Manifest = None,
    mask: Annotated[Path | None, typer.Option("--mask", help="Also write the brain mask.")] = None,
    posteriors: Annotated[
        Path | None, typer.Option("--posteriors", help="Also write probabilities, 4D uint8.")
    ] = None,
    volumes: Annotated[
        Path | None, typer.Option("--volumes", help="Also write a CSV of volumes, mm3.")
    ] = None,
    qc: Annotated[
        Path | None, typer.Option("--qc", help="Also write a CSV of verdict and confidence.")
    ] = None,
    seg: Annotated[
        Path | None,
        typer.Option(
            "--seg",
            help="Take the label map of mri_synthseg, FreeSurfer, FastSurfer or DLMUSE instead; "
            "a folder of them for many scans.",
        ),
    ] = None,
    seg_posteriors: Annotated[
        Path | None,
        typer.Option("--seg-posteriors", help="With --seg: what mri_synthseg --post wrote."),
    ] = None,
    seg_volumes: Annotated[
        Path | None, typer.Option("--seg-volumes", help="With --seg: its --vol table.")
    ] = None,
    seg_qc: Annotated[
        Path | None, typer.Option("--seg-qc", help="With --seg: its --qc table.")
    ] = None,
    bundle: Bundle = DEFAULT_BUNDLE,
    no_picture: Annotated[bool, typer.Option("--no-picture", help="Write no PNG.")] = False,
    device: Device = "auto",
    threads: Threads = 0,
    overwrite: Overwrite = False,
    force: Force = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Find the brain and its regions in any head scan, on the scan's own grid.

    Labels are FreeSurfer's codes. With a manifest or a folder of scans, OUT, --mask and
    --posteriors are folders, --volumes and --qc one table each.

    Examples:

      cfgen segment --in sub01.nii.gz --out sub01_dseg.nii.gz --volumes sub01.csv

      cfgen segment --manifest cohort.csv --out seg/ --mask masks/ --volumes volumes.csv

      cfgen segment --in sub01.nii.gz --seg sub01/mri/aparc+aseg.mgz --out sub01_dseg.nii.gz
    """
    _setup(threads, verbose, quiet)
    from cfgen.bundle import read_bundle
    from cfgen.data.conditions import default_schema
    from cfgen.data.manifest import read_manifest, write_manifest
    from cfgen.data.table import write_table
    from cfgen.jobs import segment_scans
    from cfgen.jobs.batch import folder_rows, single_row
    from cfgen.jobs.device import pick_device
    from cfgen.jobs.gate import Gate

    _one_source("segment", image, manifest)
    single = image is not None and not image.is_dir()
    if manifest is not None:
        rows = read_manifest(manifest, default_schema())
    else:
        assert image is not None
        rows = [single_row(image, None)] if single else folder_rows(image)
    files = segment_scans.name_outputs(rows, out, mask, posteriors, not no_picture, single)
    if seg is None and (seg_posteriors or seg_volumes or seg_qc):
        raise UsageError("segment", "--seg-posteriors, --seg-volumes or --seg-qc alone", "--seg")
    if seg is not None and posteriors is not None:
        raise UsageError("--posteriors", "beside --seg, which has its own", "one of them")
    found = read_bundle(bundle)
    if seg is not None:
        regions = segment_scans.by_other_tool(seg, seg_posteriors, seg_volumes, seg_qc)
    else:
        regions = segment_scans.by_segmenter(found, pick_device(device))
    result = segment_scans.segment_scans(
        regions,
        rows,
        files,
        Gate(found.card, force),
        source="" if seg else f"segmenter {found.part('segmenter').sha256}",
        keep_going=not single,
        overwrite=overwrite,
    )
    for path, lines in ((volumes, result.volumes), (qc, result.quality)):
        if path is not None:
            write_table(path, lines)
    if not single and result.done:
        write_manifest(out / "manifest.csv", result.done)
    _print([str(row.labels) for row in result.done], as_json)
    if result.failed:
        write_manifest(out / "failed.csv", result.failed)
    _stopped(len(result.left), manifest or image)
    if result.failed:
        raise typer.Exit(EXIT_SOME_FAILED)


@app.command()
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
    grid: Grid = config.DEFAULT_GRID,
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
    shard: Annotated[
        str, typer.Option("--shard", help="I/N: the I-th of N parts of the cohort, from 1.")
    ] = "1/1",
    threads: Threads = 0,
    seed: Seed = config.SEED,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Make a cohort of brains that never lived, whose true counterfactuals are known.

    Volumes follow a structural causal model, anatomy meets them, and scanner physics makes the
    image. Labels, posteriors and volumes lie beside every image, and say what they truly are.

    Examples:

      cfgen simulate --preset lifespan --n 100 --truth age=+30 --out cohort/

      cfgen simulate --preset iap --n 50 --truth manufacturer=GE --truth field_tesla=1.5 --out iap/
    """
    _setup(threads, verbose, quiet)
    from cfgen.data.conditions import parse_interventions
    from cfgen.jobs.simulate import Plan, plan_subjects
    from cfgen.jobs.simulate import simulate as job
    from cfgen.sim import cohort
    from cfgen.sim.scm import graph, stress_of

    variables = cohort.schema(graph())
    truths = [parse_interventions(variables, sets=t.split(","))[0] for t in truth or []]
    start, stop = _shard(shard, n)
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
    )
    if dry_run:
        subjects, counterfactuals, left_out = plan_subjects(plan)
        for text in left_out:
            log.warning("left out: %s", text)
        print(f"{len(subjects)} images, {len(counterfactuals)} true counterfactuals")
        return
    made = job(plan, out, overwrite=overwrite)
    if as_json:
        summary = {
            "preset": preset,
            "seed": seed,
            "images": [str(r.image) for r in made.rows],
            "truths": [str(r.image) for r in made.truths],
            "left_out": made.left_out,
        }
        print(json.dumps(summary, indent=2))
    else:
        print(out / "manifest.csv")


def _shard(text: str, n: int) -> tuple[int, int]:
    """'2/4' of n -> the numbers from which and before which the second quarter lies."""
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise UsageError("--shard", f"'{text}'", "I/N, for example 2/4")
    return n * (int(part) - 1) // int(parts), n * int(part) // int(parts)


@app.command()
def evaluate(
    real: Annotated[
        Path, typer.Option("--real", help="Manifest of real scans, with their age and sex.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for tables and figures.")],
    counterfactuals: Annotated[
        list[str] | None,
        typer.Option(
            "--counterfactuals",
            help="[NAME=]MANIFEST that 'cfgen counterfactual' wrote; repeat it to compare.",
        ),
    ] = None,
    generated: Annotated[
        list[str] | None,
        typer.Option("--generated", help="[NAME=]MANIFEST of scans that were made of nobody."),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option("--truth", help="truth.csv of 'cfgen simulate --truth'."),
    ] = None,
    suite: Annotated[
        str, typer.Option("--suite", help="quick, standard, full or paper; see README.")
    ] = "standard",
    split: Annotated[
        str, typer.Option("--split", help="Only real scans of this split, for example val.")
    ] = "",
    medicalnet: Annotated[
        Path | None,
        typer.Option("--medicalnet", help="resnet_10.pth, 50 or 101 of Tencent/MedicalNet."),
    ] = None,
    bundle: Bundle = DEFAULT_BUNDLE,
    device: Device = "auto",
    threads: Threads = 0,
    seed: Seed = config.SEED,
    overwrite: Overwrite = False,
    force: Force = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Measure counterfactuals: reached, kept, like real brains, and near the truth where known.

    Writes metrics.csv and .json (each figure with its n, interval, extractor and direction), tables
    as in the papers, figures, a methods paragraph and BibTeX. Leaving every scan as it is ('copy')
    is always measured beside. The bundle's judge and segmenter measure; prepared scans are kept in
    OUT/work.

    Examples:

      cfgen evaluate --real cohort.csv --counterfactuals edits/manifest.csv --out evaluation/

      cfgen evaluate --real sim/manifest.csv --truth sim/truth.csv --suite quick
        --counterfactuals ours=a/manifest.csv --counterfactuals theirs=b/manifest.csv --out e/
    """
    _setup(threads, verbose, quiet)
    from cfgen.bundle import read_bundle
    from cfgen.data.manifest import read_manifest
    from cfgen.data.volume import refuse_existing
    from cfgen.jobs.device import pick_device, worker_count
    from cfgen.jobs.evaluate import SUITES, Asked
    from cfgen.jobs.evaluate import evaluate as job
    from cfgen.jobs.evaluate_read import conditions_of
    from cfgen.jobs.evaluate_tables import tables
    from cfgen.jobs.evaluate_write import write_evaluation

    if suite not in SUITES:
        raise UsageError("--suite", f"'{suite}'", ", ".join(SUITES))
    if suite == "paper" and medicalnet is None:
        raise UsageError("--suite", "paper without --medicalnet", "the weights of the papers' FID")
    refuse_existing(out / "metrics.csv", overwrite)
    known = conditions_of(read_bundle(bundle))
    rows = [r for r in read_manifest(real, known) if split in ("", r.split)]
    if not rows:
        raise UsageError("--split", f"no row of {real} is '{split}'", "a split that it has")
    asked = Asked(
        rows,
        {n: read_manifest(p, known) for n, p in _named(counterfactuals, "--counterfactuals")},
        {n: read_manifest(p, known) for n, p in _named(generated, "--generated")},
        read_manifest(truth, known) if truth else [],
        bundle,
        suite,
        medicalnet,
        seed,
        force,
        overwrite,
        worker_count(pick_device(device), len(rows)),
    )
    found = job(asked, out / "work", device)
    written = write_evaluation(found, suite, seed, out)
    if as_json:
        print((out / "metrics.json").read_text())
        return
    methods = list(dict.fromkeys(r.method for r in found.results if r.method != "real"))
    log.info("%s", tables(found.results, methods))
    _print([str(path) for path in written], False)


def _named(given: list[str] | None, option: str) -> list[tuple[str, Path]]:
    """'ours=a.csv' -> its name and path; a bare path is named by its folder."""
    out = []
    for text in given or []:
        name, equals, path = text.partition("=")
        if not equals:
            name, path = Path(text).absolute().parent.name, text
        out.append((name, Path(path)))
    names = [name for name, _ in out]
    if len(set(names)) < len(names) or {"copy", "real", "oracle"} & set(names):
        raise UsageError(
            option,
            f"names {', '.join(names)}",
            "different NAME=MANIFEST, none of them copy, real or oracle",
        )
    return out


@app.command()
def undo(
    image: Annotated[Path, typer.Option("--in", "-i", help="Edited image on the model grid.")],
    prepared: Annotated[Path, typer.Option("--prepared", help="What 'preprocess' wrote.")],
    scan: Annotated[Path, typer.Option("--scan", help="The scan that was prepared.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Image to write, on the scan's grid.")],
    overwrite: Overwrite = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Carry an edit of a prepared image back to the scan it came from."""
    _setup(0, verbose, quiet)
    from cfgen.jobs.preprocess import undo as job

    print(job(image, prepared, scan, out, overwrite))


def _training_options(
    steps: int, learning_rate: float, batch_size: int, seed: int, usual: Any
) -> Any:
    """The stage's usual settings with those that were given."""
    given = {"steps": steps, "learning_rate": learning_rate, "batch_size": batch_size}
    return replace(usual, seed=seed, **{k: v for k, v in given.items() if v})


TrainManifest = Annotated[
    Path,
    typer.Option("--manifest", help="Prepared scans ('cfgen preprocess') with a split column."),
]
OutBundle = Annotated[Path, typer.Option("--out", "-o", help="Folder of the bundle to write.")]
Steps = Annotated[int, typer.Option("--steps", min=0, help="Training steps; 0 is the usual.")]
Rate = Annotated[float, typer.Option("--learning-rate", min=0, help="0 is the usual.")]
Batch = Annotated[int, typer.Option("--batch-size", min=0, help="0 is the usual.")]
SourceBundle = Annotated[Path, typer.Option("--bundle", help="Bundle to which the part is added.")]


@app.command("train-ae")
def train_ae(
    manifest: TrainManifest,
    out: OutBundle,
    grid: Grid = config.DEFAULT_GRID,
    init: Annotated[
        Path | None,
        typer.Option("--init", help="Bundle whose autoencoder the training goes on from."),
    ] = None,
    conditions: Annotated[
        str,
        typer.Option("--conditions", help="Columns to learn beside age and sex: ad,field_tesla."),
    ] = "",
    about: Annotated[
        Path | None, typer.Option("--about", help="JSON that names data, licence, attribution.")
    ] = None,
    steps: Steps = 0,
    learning_rate: Rate = 0.0,
    batch_size: Batch = 0,
    device: Device = "auto",
    threads: Threads = 0,
    seed: Seed = config.SEED,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Train the autoencoder of a new bundle.

    The checkpoint, log and pictures lie beside the bundle in OUT-training. The same command goes on
    after an interruption.
    """
    _setup(threads, verbose, quiet)
    from cfgen.jobs.stages import read_about, train_autoencoder
    from cfgen.jobs.train_autoencoder import AUTOENCODER_FIT

    fit = _training_options(steps, learning_rate, batch_size, seed, AUTOENCODER_FIT)
    recipe = config.Preprocess(grid=grid)
    names = [name for name in conditions.split(",") if name]
    bundle = train_autoencoder(manifest, out, recipe, fit, device, read_about(about), init, names)
    print(bundle.path)


@app.command("train-ldm")
def train_ldm(
    manifest: TrainManifest,
    bundle: SourceBundle,
    out: OutBundle,
    latent_mean: Annotated[
        str,
        typer.Option("--latent-mean", help="ridge, or none for the papers' plain diffusion."),
    ] = "ridge",
    steps: Steps = 0,
    learning_rate: Rate = 0.0,
    batch_size: Batch = 0,
    device: Device = "auto",
    threads: Threads = 0,
    seed: Seed = config.SEED,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Add the latent mean and the diffusion model to a bundle that has an autoencoder."""
    _setup(threads, verbose, quiet)
    if latent_mean not in ("ridge", "none"):
        raise UsageError("--latent-mean", f"'{latent_mean}'", "ridge or none")
    from cfgen.jobs.stages import train_latent_diffusion
    from cfgen.jobs.train_latent_diffusion import LATENT_DIFFUSION, LATENT_DIFFUSION_FIT

    fit = _training_options(steps, learning_rate, batch_size, seed, LATENT_DIFFUSION_FIT)
    diffusion = replace(LATENT_DIFFUSION, latent_mean=latent_mean == "ridge")
    print(train_latent_diffusion(manifest, bundle, out, fit, device, diffusion).path)


@app.command("train-predictor")
def train_predictor_command(
    manifest: TrainManifest,
    bundle: SourceBundle,
    out: OutBundle,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            help="Train the judge of age, sex, another column (numbers, or 2 to 10 texts), or "
            "volumes: the regions of the label maps; repeatable.",
        ),
    ] = None,
    networks: Annotated[
        int, typer.Option("--networks", min=0, help="Networks of the judge; 0 is the usual.")
    ] = 0,
    steps: Steps = 0,
    learning_rate: Rate = 0.0,
    batch_size: Batch = 0,
    device: Device = "auto",
    threads: Threads = 0,
    seed: Seed = config.SEED,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Add the predictor of conditions, or with --target the judge of counterfactuals.

    The predictor (ridge, seconds) guesses age and sex of a scan for which nobody says them. The
    judge (a few CNNs that differ by seed, minutes) guesses the targets from images that were
    edited, to say whether the edit arrived. Both see the train split alone; the judge leaves
    synthetic rows out, needs val scans, and prints its own error on them.

    Examples:

      cfgen train-predictor --manifest prepared/manifest.csv --bundle ae/ --out ae-predictor/

      cfgen train-predictor --manifest prepared/manifest.csv --target age --target sex
      --target volumes --bundle whole/ --out judged/
    """
    _setup(threads, verbose, quiet)
    from cfgen.jobs import stages

    if not target:
        if networks or steps or learning_rate or batch_size:
            found = "--networks, --steps, --learning-rate or --batch-size without --target"
            raise UsageError("train-predictor", found, "--target: they are the judge's")
        print(stages.train_predictor(manifest, bundle, out).path)
        return
    from cfgen.jobs.train_judge import JUDGE_FIT, SEEDS

    fit = _training_options(steps, learning_rate, batch_size, seed, JUDGE_FIT)
    print(stages.train_judge(manifest, target, bundle, out, fit, device, networks or SEEDS).path)


@app.command("train-segmenter")
def train_segmenter_command(
    manifest: Annotated[
        Path,
        typer.Option("--manifest", help="Whole heads with label maps of the brain, and splits."),
    ],
    label_maps: Annotated[
        Path,
        typer.Option("--label-maps", help="Folder of whole-head label maps, FreeSurfer codes."),
    ],
    bundle: SourceBundle,
    out: OutBundle,
    init: Annotated[
        Path | None,
        typer.Option("--init", help="Bundle whose segmenter the training goes on from."),
    ] = None,
    steps: Steps = 0,
    learning_rate: Rate = 0.0,
    device: Device = "auto",
    threads: Threads = 0,
    seed: Seed = config.SEED,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Add brain extraction and regions to a bundle, learned from painted and real heads."""
    _setup(threads, verbose, quiet)
    from cfgen.jobs.stages import train_segmenter
    from cfgen.jobs.train_segmenter import SEGMENTER_FIT

    fit = _training_options(steps, learning_rate, 0, seed, SEGMENTER_FIT)
    print(train_segmenter(manifest, label_maps, bundle, out, fit, device, init).path)


def _skull_strip(text: str, mask: Path | None) -> tuple[config.SkullStrip, Path | None]:
    """'mask:FILE' is the same as --mask FILE."""
    if text.startswith("mask:"):
        if mask is not None:
            raise UsageError("--skull-strip", f"'{text}' and --mask {mask}", "one of them")
        return config.SKULL_STRIP, Path(text.removeprefix("mask:"))
    for how in get_args(config.SkullStrip):
        if text == how:
            return how, mask
    expected = ", ".join(get_args(config.SkullStrip)) + " or mask:FILE"
    raise UsageError("--skull-strip", f"'{text}'", expected)


def _one_source(command: str, image: Path | None, manifest: Path | None) -> None:
    if (image is None) == (manifest is None):
        found = "neither --in nor --manifest" if image is None else "both --in and --manifest"
        raise UsageError(command, found, "one of them")


def _print(paths: list[str], as_json: bool) -> None:
    print(json.dumps({"outputs": paths}, indent=2) if as_json else "\n".join(paths))


def _expand_config(arguments: list[str]) -> list[str]:
    """Replace `--config run.toml` by the options in it; those on the command line win."""
    if "--config" not in arguments:
        return arguments
    place = arguments.index("--config")
    if place + 1 == len(arguments):
        raise UsageError("--config", "no file", "a TOML file with options")
    path = Path(arguments[place + 1])
    rest = arguments[:place] + arguments[place + 2 :]
    try:
        options = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(path, f"cannot be read ({error})", "a TOML file with options") from error
    given = {a.partition("=")[0] for a in rest}
    short = {"--in": "-i", "--out": "-o"}
    for name, value in options.items():
        flag = f"--{name}"
        if flag in given or short.get(flag) in given or value is False:
            continue
        values = value if isinstance(value, list) else [value]
        rest += [flag] if value is True else [f"{flag}={v}" for v in values]
    return rest


def main() -> None:
    """Entry point: errors that a user can mend are one line and an exit code, never a traceback."""
    try:
        app(_expand_config(sys.argv[1:]))
    except CfgenError as error:
        print(f"cfgen: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except MemoryError:
        print("cfgen: out of memory; close other programs or use fewer --threads", file=sys.stderr)
        sys.exit(EXIT_OUT_OF_MEMORY)
    except RuntimeError as error:
        # torch reports memory of either device as a RuntimeError.
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        print(f"cfgen: out of memory ({error}); use --device cpu or free memory", file=sys.stderr)
        sys.exit(EXIT_OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
