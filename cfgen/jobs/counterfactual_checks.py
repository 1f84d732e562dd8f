"""What can be told of a counterfactual's options before a scan is opened."""

from __future__ import annotations

from collections.abc import Iterable

from cfgen.bundle import Bundle
from cfgen.causal.scm import load_scm
from cfgen.causal.worlds import volume_names
from cfgen.config import EDIT, By
from cfgen.data.conditions import Intervention
from cfgen.edit.decoder import check_decoder
from cfgen.edit.edits import check_law
from cfgen.edit.latent import has_null, require_null
from cfgen.edit.way import Way, way_of
from cfgen.errors import UsageError
from cfgen.jobs.counterfactual_files import Options
from cfgen.measure.region_masks import require_known

# Which options have a meaning by what.
GENERATED: tuple[By, ...] = ("conditions", "masks", "tissue+masks")
MOVED: tuple[By, ...] = ("tissue", "tissue+masks")
MASKED: tuple[By, ...] = ("masks", "tissue+masks")
CAUSAL: tuple[By, ...] = ("tissue", "masks", "tissue+masks")


def checked_way(bundle: Bundle, interventions: Iterable[Intervention], options: Options) -> Way:
    """By what the edits are made and how they reach the scan. Raises UsageError for what this way
    does not have, and BundleError for a part that the bundle lacks."""
    if options.samples < 1:
        raise UsageError("--samples", f"{options.samples}", "1 or more")
    way = way_of(bundle, options.by, options.render)
    regions = sorted({c.name for i in interventions for c in i.changes} - set(bundle.schema.names))
    asked: dict[str, tuple[bool, tuple[By, ...]]] = {
        "--reconstruction": (options.reconstruction, GENERATED),
        sampler_options(options): (options.edit is not None, GENERATED),
        "--guidance-from masks": (options.sampler.guidance_from == "masks", MASKED),
        "--decoder": (options.decoder != "kl", GENERATED),
        "--field": (options.field, MOVED),
        "--move-noise": (not options.keep_noise, MOVED),
        "--scale-head": (options.scale_head, ("tissue",)),
        "--rates": (options.rates != "cohort", CAUSAL),
        f"--set {', '.join(regions)}": (bool(regions), CAUSAL),
    }
    for name, (given, ways) in asked.items():
        if given and way.by not in ways:
            raise UsageError(name, f"not with --by {way.by}", f"--by {' or '.join(ways)}")
    if options.field and options.scale_head:
        raise UsageError("--field", "beside --scale-head", "one of them")
    if way.moves and options.samples > 1:
        check_law(load_scm(bundle), options.samples)
    if way.generates:
        null = has_null(bundle) or options.sampler.guidance_from != "nothing"
        require_null(options.sampler.guidance, null)
    if options.decoder == "diffusion":
        check_decoder(bundle)
    if way.by == "masks":
        volumes = [name for name in regions if name in volume_names(load_scm(bundle).graph)]
        require_known(volumes, bundle.part("controlnet").config["regions"], "--set")
    return way


def sampler_options(options: Options) -> str:
    """Which of them say something new; all where what they say is what it is anyway."""
    names = ("steps", "depth", "guidance", "guidance_from", "drift")
    new = [n for n in names if getattr(options.sampler, n) != getattr(EDIT, n)]
    return ", ".join(f"--{name.replace('_', '-')}" for name in new or names)
