"""`cfgen augment-iap`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cfgen import config as cfg
from cfgen.cli.options import (
    DEFAULT_BUNDLE,
    AsJson,
    Bundle,
    Config,
    Device,
    DryRun,
    Force,
    In,
    Manifest,
    NoPicture,
    Overwrite,
    Quiet,
    Seed,
    Shard,
    Threads,
    Verbose,
    one_source,
    shard_of,
)
from cfgen.cli.show import end_batch, print_paths, setup
from cfgen.errors import EXIT_UNUSABLE_INPUT, UsageError

if TYPE_CHECKING:
    from cfgen.data.protocol_pool import Pool
    from cfgen.data.table import Row

log = logging.getLogger("cfgen")


def augment_iap(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new scans.")],
    image: In = None,
    manifest: Manifest = None,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", help="NAME=VALUE of the other protocol, as in BIDS; repeatable."),
    ] = None,
    sample: Annotated[
        int, typer.Option("--sample", min=0, help="So many drawn protocols for every scan.")
    ] = 0,
    from_manifest: Annotated[
        Path | None,
        typer.Option(
            "--from-manifest",
            help="With --sample: protocols of these scans.",
            show_default="the scans' own",
        ),
    ] = None,
    protocols: Annotated[
        Path | None,
        typer.Option(
            "--protocols", help="With --sample: TOML of [[protocol]], ranges [low, high]."
        ),
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option("--from", help="NAME=VALUE that the scans' sidecars lack; repeatable."),
    ] = None,
    by: Annotated[
        Literal["physics", "diffusion"],
        typer.Option(
            "--by", help="The signal equations, or a bundle's model of how scans were acquired."
        ),
    ] = "physics",
    bias: Annotated[
        cfg.BiasField,
        typer.Option(
            "--bias", help="keep the scan's field, remove it, or as the target's strength has it."
        ),
    ] = "keep",
    noise: Annotated[
        cfg.NoiseOf,
        typer.Option("--noise", help="At the target's expected SNR: own scaled, or fresh added."),
    ] = "keep",
    resolution: Annotated[
        bool, typer.Option("--resolution", help="Blur to thicker slices and a coarser matrix.")
    ] = False,
    start_t: Annotated[
        int | None,
        typer.Option(
            "--start-t",
            help="Of diffusion: the time of the noise.",
            show_default="1000, all of it; of ddpm 50",
        ),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", help="Of diffusion.", show_default="1; of ddpm 3")
    ] = None,
    sampler: Annotated[
        cfg.AcquisitionSampler | None,
        typer.Option("--sampler", help="Of diffusion: noise found, or drawn.", show_default="ddim"),
    ] = None,
    lock: Annotated[
        bool | None,
        typer.Option(
            "--lock/--no-lock",
            help="Of diffusion's change only a smooth map of brightness, or all of it.",
            show_default="lock",
        ),
    ] = None,
    bundle: Bundle = DEFAULT_BUNDLE,
    no_picture: NoPicture = False,
    shard: Shard = "1/1",
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
    """Scans as another scanner protocol would have shown them, anatomy and labels untouched.

    Contrast follows the MPRAGE or SPGR signal equation, from the scan's own tissue brightness: no
    training data is needed. Acquisition parameters are read from JSON sidecars or manifest columns;
    labels, masks and posteriors come along, byte for byte.

    Examples:

      cfgen augment-iap --manifest cohort.csv --to MagneticFieldStrength=1.5 --out iap/

      cfgen augment-iap --manifest cohort.csv --sample 4 --from-manifest site-b.csv --out iap/

      cfgen augment-iap --in sub-01_T1w.nii.gz --to InversionTime=1.1 --out iap/

    What has no equation (maker, coil, brightness, contrast) is for a model of the lab's own scans:

      cfgen augment-iap --manifest cohort.csv --by diffusion --bundle site/
      --to Manufacturer=GE --out iap/
    """
    setup(threads, verbose, quiet)
    from cfgen.batch.lists import write_lists
    from cfgen.bundle import read_bundle
    from cfgen.data.conditions import default_schema
    from cfgen.data.manifest import read_manifest
    from cfgen.device import pick_device
    from cfgen.edit.acquired import Diffusion
    from cfgen.edit.protocols import check_changes
    from cfgen.edit.rerender import EFFECTS, Effects
    from cfgen.jobs.augment_iap import Asked, Augmenter, Options, augment_scans, check
    from cfgen.jobs.augment_scan import Way
    from cfgen.jobs.counterfactuals import single_row
    from cfgen.report.protocols import write_page
    from cfgen.scan.gate import Gate

    one_source("augment-iap", image, manifest)
    if bool(to) == bool(sample):
        raise UsageError("augment-iap", "both" if to else "neither", "--to or --sample")
    if not sample and (from_manifest or protocols):
        raise UsageError("--from-manifest or --protocols", "without --sample", "--sample N")
    if manifest is not None:
        rows = read_manifest(manifest, default_schema(), keep_missing=True)
    else:
        assert image is not None
        rows = [single_row(image, None)]
    asking = {"start_t": start_t, "guidance": guidance}
    effects = Effects(bias, noise, resolution)
    way: Way = effects
    if by == "diffusion":
        if effects != EFFECTS:
            raise UsageError("--bias, --noise or --resolution", "--by diffusion", "--by physics")
        said = {name: value for name, value in asking.items() if value is not None}
        asked_of = replace(cfg.REDIFFUSION[sampler or "ddim"], **said)  # type: ignore[arg-type]
        way = Diffusion(read_bundle(bundle), pick_device(device), asked_of, lock is not False)
    elif any(value is not None for value in (*asking.values(), sampler, lock)):
        found = "without --by diffusion"
        raise UsageError("--start-t, --guidance, --sampler or --lock", found, "--by diffusion")
    changes = _pairs(to or [], "--to", scales=by == "diffusion")
    if by == "physics":
        check_changes(changes)
    pool = _pool(rows, from_manifest, protocols) if sample else None
    asked = Asked(changes, pool, sample, _pairs(given or [], "--from"))
    start, stop = shard_of(shard, len(rows))
    rows = rows[start:stop]
    options = Options(way, seed, not no_picture, overwrite)
    if dry_run:
        failed = check(rows, asked, options, out)
        for row in failed:
            log.error("%s: %s", row.source or row.image, row.extra["error"])
        count = (len(rows) - len(failed)) * (sample or 1)
        print(f"{count} images of {len(rows) - len(failed)} scans")
        if failed and image is not None:
            raise typer.Exit(EXIT_UNUSABLE_INPUT)
        end_batch(len(failed), 0, manifest)
        return
    model = read_bundle(bundle)
    augmenter = Augmenter(model, Gate(model.card, force), pick_device(device), options)
    outcome = augment_scans(augmenter, rows, asked, out, keep_going=image is None)
    done = [row for many in outcome.done for row in many]
    for path in write_lists(out, done, outcome.failed, rows):
        log.info("wrote %s", path)
    if done:
        log.info("wrote %s", write_page(out, outcome.failed))
    print_paths([str(row.image) for row in done], as_json)
    end_batch(len(outcome.failed), len(outcome.left), manifest)


def _pairs(texts: Sequence[str], option: str, scales: bool = False) -> dict[str, str]:
    from cfgen.data.interventions import split_assignment
    from cfgen.edit.protocols import check_names

    pairs: dict[str, str] = {}
    for text in texts:
        name, value = split_assignment(text, f"{option} {text}")
        if name in pairs:
            raise UsageError(option, f"{name} given twice", "one value for each parameter")
        pairs[name] = value
    check_names(pairs, option, scales)
    return pairs


def _pool(rows: Sequence[Row], from_manifest: Path | None, protocols: Path | None) -> Pool:
    """The declared source of protocols; another site's is labelled as such."""
    from cfgen.data.conditions import default_schema
    from cfgen.data.manifest import read_manifest
    from cfgen.data.protocol_pool import read_protocols
    from cfgen.jobs.augment_iap import manifest_pool

    if from_manifest and protocols:
        raise UsageError("augment-iap", "both --from-manifest and --protocols", "one of them")
    if protocols:
        return read_protocols(protocols)
    if from_manifest:
        others = read_manifest(from_manifest, default_schema(), keep_missing=True)
        return manifest_pool(others, f"{from_manifest.name} (target-informed)")
    training = [row for row in rows if row.split in ("", "train")]
    return manifest_pool(training or rows, "the training scans of the manifest")
