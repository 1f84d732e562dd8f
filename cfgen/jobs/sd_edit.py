"""Edit axial slices of a scan by Stable Diffusion, and write them back on the scan's own grid."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cfgen import __version__
from cfgen.config import SD_EDIT, SD_RENDER, SEED, SdRender
from cfgen.data.bids import bids_values
from cfgen.data.conditions import Intervention, Values
from cfgen.data.names import check_outputs
from cfgen.data.record import SourceFile, this_software, write_record
from cfgen.data.schema import Schema, Variable, default_schema
from cfgen.data.volume import (
    SUFFIXES,
    SYNTHETIC,
    file_sha256,
    is_image_path,
    read_volume,
    refuse_existing,
    strip_suffix,
    write_like,
)
from cfgen.diffusion.drift import Drift, parse_drift
from cfgen.errors import UsageError
from cfgen.measure.background import empty_value, filled_foreground
from cfgen.progress import working
from cfgen.sd.model import SdModel, unet_sha256
from cfgen.sd.picture import slices_picture
from cfgen.sd.prompts import SIMPLE, concepts, instruction, prompt
from cfgen.sd.sampling import Edited, Sampling, instruct, zero_shot
from cfgen.sd.sidecar import SdModelName, SdSidecar, SliceRecord, library_versions
from cfgen.sd.slices import Slices, parse_range
from cfgen.streams import Purpose, torch_stream

log = logging.getLogger("cfgen")

# The paper's.
DIAGNOSES = ("CN", "MCI", "AD")


@dataclass(frozen=True)
class Options:
    """`residual` adds to the scan what the edit changed of what the model sees; `latent` puts the
    edited slices there as they are."""

    slices: str
    sampling: Sampling
    render: SdRender = SD_RENDER
    picture: bool = True
    seed: int = SEED
    overwrite: bool = False


@dataclass(frozen=True)
class Words:
    """What a model is told: an instruction; or the scan's caption, and the sentences at both ends
    of a direction."""

    before: Values
    after: Values
    prompt: str
    direction: tuple[list[str], list[str]] | None = None


def sd_schema(model: SdModel) -> Schema:
    """Age, sex, and the diagnoses that the model was trained on, beside the paper's."""
    levels = dict.fromkeys([*model.card.diagnoses, *DIAGNOSES])
    diagnosis = Variable("diagnosis", "categorical", levels=tuple(levels))
    return Schema((*default_schema().variables, diagnosis))


def words_of(model: SdModel, scan: Path, given: Values, change: Intervention) -> Words:
    """Sentences of an edit. What is not given of the scan is looked for beside it.

    Raises UsageError where a value that the change starts from is unknown.
    """
    beside, where = bids_values(scan, default_schema())
    if set(beside) - set(given):
        log.info("%s: %s", where, ", ".join(f"{n}={v}" for n, v in beside.items()))
    before = {**beside, **given}
    after = change.apply(before)
    style, noun = model.card.style, model.card.noun
    if model.edits:
        return Words(before, after, instruction(before, after, style, noun))
    changed = [name for name in after if before.get(name) != after[name]]
    unknown = [name for name in changed if name not in before]
    if unknown:
        raise UsageError(
            "--from",
            f"{' and '.join(unknown)} of the scan unknown",
            "what Pix2Pix-Zero goes from",
            f"say it, for example --from {unknown[0]}=...",
        )
    caption = prompt(before, style, SIMPLE, noun)
    ends = [
        concepts({name: values[name] for name in changed}, style, noun) if changed else [caption]
        for values in (before, after)
    ]
    return Words(before, after, caption, (ends[0], ends[1]))


def drift_of(text: str | None, model: SdModel) -> Drift:
    """What is asked for, or what the model was trained with. Raises UsageError."""
    if text is None:
        return model.card.trained
    return parse_drift(text).constant("for Stable Diffusion").check(model.channels)


def check_sampling(model: SdModel, sampling: Sampling) -> None:
    """Raises UsageError for numbers that no method takes."""
    how = sampling.edit
    if how.guidance <= 1:
        raise UsageError("--guidance", f"{how.guidance:g}", "a number above 1")
    most = int(model.levels["num_train_timesteps"]) // 2
    if how.steps > most:
        raise UsageError("--steps", f"{how.steps}", f"{most} at most")
    if how.image_guidance < 1:
        raise UsageError("--image-guidance", f"{how.image_guidance:g}", "a number from 1 on")


def check_method(model: SdModel, sampling: Sampling) -> None:
    """Raises UsageError for options that the model's method does not know."""
    if model.edits:
        return
    if sampling.sampler != "ddim":
        raise UsageError(
            "--sampler", f"'{sampling.sampler}' with Pix2Pix-Zero", "ddim, which can be inverted"
        )
    if sampling.edit.image_guidance != SD_EDIT.image_guidance:
        raise UsageError("--image-guidance", "with Pix2Pix-Zero", "a model of InstructPix2Pix")


def output_files(out: Path, options: Options) -> dict[str, Path]:
    """The files of an edit by what they are. Raises UsageError where one exists already, or `out`
    is no image."""
    if not is_image_path(out):
        raise UsageError(out, "no image suffix", "one of " + ", ".join(SUFFIXES))
    files = {"image": out, "sidecar": out.with_name(strip_suffix(out) + ".json")}
    if options.picture:
        files["picture"] = out.with_name(strip_suffix(out) + ".png")
    check_outputs(files.values())
    for path in files.values():
        refuse_existing(path, options.overwrite)
    return files


def open_slices(model: SdModel, scan: Path, options: Options) -> tuple[Slices, list[int]]:
    """The scan's slices, and the places of those that are edited."""
    slices = Slices.of(read_volume(scan), model.size)
    return slices, slices.between(*parse_range(options.slices))


def sd_edit(
    model: SdModel, scan: Path, change: Intervention, words: Words, out: Path, options: Options
) -> dict[str, Path]:
    """Edit the slices of one scan; the files that were written.

    A model of InstructPix2Pix follows an instruction (ageing, in the paper); any other is edited by
    Pix2Pix-Zero (disease). Every slice starts from the same noise, so that neighbours are alike;
    nothing else holds them together.
    """
    files = output_files(out, options)
    slices, places = open_slices(model, scan, options)
    edits: list[Edited] = []
    with working("slices", len(places)) as step:
        for place in places:
            edits.append(edit_slice(model, slices, place, words, options))
            step()
    data = rendered(slices, places, edits, options.render)
    label = change.label()
    description = f"{SYNTHETIC} {__version__} sd-edit {label}"
    write_like(slices.scan, slices.back(data), files["image"], description=description)
    errors = [
        _error(edit.rebuilt, slices.picture(place))
        for place, edit in zip(places, edits, strict=True)
    ]
    axis, voxels = slices.axis_and_places(places)
    if "picture" in files:
        shown = list(zip(places, voxels, edits, strict=True))
        slices_picture(slices, data, shown, files["picture"], f"{scan.name}: {label}")
    sidecar = SdSidecar(
        synthetic=True,
        description=description,
        generated_by=this_software(),
        sources=[SourceFile(scan.name, file_sha256(scan))],
        model=SdModelName(model.folder.resolve().name, unet_sha256(model.folder)),
        method="InstructPix2Pix" if model.edits else "Pix2Pix-Zero",
        intervention=label,
        factual=dict(words.before),
        target=dict(words.after),
        prompt=words.prompt,
        drift=list(options.sampling.drift.delta),
        trained_drift=list(model.card.drift),
        sampler=options.sampling.sampler,
        steps=options.sampling.edit.steps,
        guidance=options.sampling.edit.guidance,
        render=options.render,
        seed=options.seed,
        axis=axis,
        slices=[SliceRecord(v, e) for v, e in zip(voxels, errors, strict=True)],
        device=str(model.device),
        threads=torch.get_num_threads(),
        versions=library_versions(),
        direction=words.direction and (words.direction[0][0], words.direction[1][0]),
    )
    write_record(sidecar, files["sidecar"])
    return files


def rendered(
    slices: Slices, places: Sequence[int], edits: Sequence[Edited], how: SdRender
) -> np.ndarray:
    """The scan (R, A, S) with its edited slices. Where its background has one value it stays."""
    data = slices.data.copy()
    low = min(float(data.min()), 0.0)
    empty = empty_value(data)
    inside = np.ones(data.shape, bool) if empty is None else filled_foreground(data, empty)
    for place, edit in zip(places, edits, strict=True):
        values = slices.values(edit.picture)
        if how == "residual":
            values = data[:, :, place] + values - slices.values(edit.rebuilt)
        here = inside[:, :, place]
        data[:, :, place][here] = np.maximum(values, low)[here]
    return data


def edit_slice(
    model: SdModel, slices: Slices, place: int, words: Words, options: Options
) -> Edited:
    """One slice, by the method of the model."""
    picture = slices.picture(place)
    if words.direction is not None:
        return zero_shot(
            model, picture, words.prompt, words.direction, options.sampling, options.seed
        )
    stream = torch_stream(options.seed, Purpose.SAMPLES)
    noise = torch.randn(1, *model.latent_shape, generator=stream)
    return instruct(model, picture, words.prompt, noise, options.sampling, options.seed)


def _error(rebuilt: torch.Tensor, picture: torch.Tensor) -> float:
    seen = rebuilt.float().cpu()
    # Black is 0: an error of empty space is none of the slice.
    return float((seen - picture).norm() / (picture + 1).norm())
