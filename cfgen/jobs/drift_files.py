"""The search of a drift on disk: its curve as a table and pictures; a later run takes it up."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from cfgen.batch.resume import fingerprint
from cfgen.data.volume import write_atomically
from cfgen.diffusion.drift import Drift, Form
from cfgen.edit.drift_search import HOW, SAMPLES, Curve, curve_of, sampled, search_drift
from cfgen.edit.latent import Models
from cfgen.scan.pictures import new_figure, save_figure

# Deltas whose sample is shown.
SHOWN = 11


def find_drift(
    models: Models,
    c: Tensor,
    scans: Tensor,
    subjects: Sequence[str],
    parent: str,
    seed: int,
    folder: Path,
    form: Form = "constant",
) -> Curve:
    """The curve for held-out scans (N, D, H, W) of `subjects` under c (N, V), kept in `folder`
    (`kept_curve`), with samples.png. `parent` is the bundle's identity."""
    digest = str(float(models.latent_mean.coefficients.double().sum()))
    asked = [parent, digest, list(subjects), c.tolist(), seed, SAMPLES, HOW.steps, form]
    wanted = fingerprint([], asked)

    def found() -> Curve:
        curve = search_drift(models, c, scans, seed, form)
        _draw_samples(models, c, curve, seed, folder / "samples.png")
        return curve

    return kept_curve(found, wanted, seed, folder, form)


def kept_curve(
    found: Callable[[], Curve], wanted: str, seed: int, folder: Path, form: Form = "constant"
) -> Curve:
    """The curve that `found` gives, with curve.csv and curve.png in `folder`.

    What was found there for the same question, whose fingerprint is `wanted`, is taken up.
    """
    record = folder / "distances.json"
    if record.exists():
        known = json.loads(record.read_text())
        if known["made_from"] == wanted:
            pairs = zip(known["deltas"], known["distances"], strict=True)
            return curve_of({d: np.array(x) for d, x in pairs}, seed, form)
    folder.mkdir(parents=True, exist_ok=True)
    curve = found()
    write_atomically(folder / "curve.csv", lambda path: _write_table(curve, path))
    _draw_curve(curve, folder / "curve.png")
    entry = {
        "made_from": wanted,
        "deltas": curve.deltas.tolist(),
        "distances": curve.distances.tolist(),
    }
    write_atomically(record, lambda path: path.write_text(json.dumps(entry)))
    return curve


def _write_table(curve: Curve, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["delta", "l1", "low95", "high95", "best"])
        for n, delta in enumerate(curve.deltas.tolist()):
            numbers = (curve.means[n], curve.low[n], curve.high[n])
            best = "best" if delta == curve.best else ""
            writer.writerow([f"{delta:g}", *(f"{x:.6g}" for x in numbers), best])


def _draw_curve(curve: Curve, path: Path) -> None:
    figure, axes = new_figure(1, 1, 5.0, 3.2)
    place = axes.flat[0]
    low, high = curve.interval
    place.axvspan(low, high, color="0.9", label="95 % of the minimum")
    place.fill_between(curve.deltas, curve.low, curve.high, color="tab:blue", alpha=0.2, lw=0)
    place.plot(curve.deltas, curve.means, "o-", ms=3, color="tab:blue", label="L1, 95 %")
    place.axvline(0, color="0.5", lw=0.8, ls=":")
    place.axvline(curve.best, color="tab:red", lw=0.8, label=f"best {curve.best:g}")
    place.locator_params(axis="x", nbins=6)
    place.set_xlabel("drift a step")
    place.set_ylabel("L1 of samples to held-out scans")
    place.legend(fontsize=7)
    save_figure(figure, path)


def _draw_samples(models: Models, c: Tensor, curve: Curve, seed: int, path: Path) -> None:
    """One brain of one noise under each of the deltas, an axial and a coronal slice."""
    every = -(-len(curve.deltas) // SHOWN)
    deltas = sorted({*curve.deltas[::every].tolist(), curve.best, 0.0})
    figure, axes = new_figure(2, len(deltas), 1.3 * len(deltas), 3.0)
    for n, delta in enumerate(deltas):
        drift = Drift((delta,), curve.form)
        image = sampled(models, c[:1], drift, seed)[0].float().numpy()
        axes[0, n].set_title(f"{delta:g}", fontsize=7, pad=2)
        middle = image.shape[2] // 2, image.shape[1] // 2
        for row, tile in enumerate((image[:, :, middle[0]].T, image[:, middle[1]].T)):
            axes[row, n].imshow(tile, origin="lower", cmap="gray", vmin=0, vmax=1)
            axes[row, n].axis("off")
    save_figure(figure, path)
