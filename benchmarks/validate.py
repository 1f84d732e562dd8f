"""Numbers of the model card: a bundle on held-out scans with label maps, beside its baselines.

    python benchmarks/validate.py --data PATH/ixi --bundle cfgen/bundles/default --out table/

Every figure is measured on the written scan's own grid. Lateral ventricles are measured without the
generator: voxels darker than halfway from cerebrospinal fluid to deep grey matter, inside the label
map's ventricles grown by 6 mm. What is due is the change that the training cohort itself shows:
log(ventricles / intracranial volume) regressed on age and age^2.
"""

from __future__ import annotations

import argparse
import csv
import logging
from pathlib import Path

import numpy as np
import torch

from cfgen.bundle import read_bundle
from cfgen.config import EDIT
from cfgen.data.volume import read_volume
from cfgen.device import autocast, pick_device
from cfgen.edit.latent import Models, condition_of, edit_latent, load_models
from cfgen.measure.predictor import load_predictor
from cfgen.metrics.image import psnr, ssim
from cfgen.metrics.morphometry import ventricle_count
from cfgen.nets.condition import Condition
from cfgen.scan.brain import brain_finder, find_brain
from cfgen.scan.prepare import Prepared, prepare
from cfgen.scan.render import render

DELTAS = (-30, -20, -10, 10, 20, 30)
log = logging.getLogger("validate")


def due(data: Path) -> np.poly1d:
    """Training cohort: log(lateral ventricles / intracranial volume) on age, a quadratic."""
    volumes = {r["subject"]: r for r in _rows(data / "dlmuse_volumes_mm3.csv")}
    rows = [r for r in _rows(data / "participants.csv") if r["split"] == "train"]
    ages = [float(r["age"]) for r in rows]
    logs = []
    for row in rows:
        v = volumes[row["subject"]]
        logs.append(np.log((float(v["51"]) + float(v["52"])) / float(v["702"])))
    return np.poly1d(np.polyfit(ages, logs, 2))


def edits(models: Models, z0: torch.Tensor, c: Condition, targets: list, method: str) -> tuple:
    """Reconstruction and counterfactual latents of a method, and the round-trip error."""
    if method == "ridge":
        mean = models.latent_mean
        r = mean.residual(z0, c.vector)
        return z0, [mean.latent(r, t.vector, c.vector) for t in targets], 0.0
    edit = edit_latent(models, z0, c, targets, EDIT)
    return edit.reconstruction, edit.counterfactuals, edit.round_trip


def predicted_age(net: torch.nn.Module, image: np.ndarray, schema, device: torch.device) -> float:
    with torch.inference_mode(), autocast(device):
        out = net(torch.from_numpy(image)[None, None].to(device)).float()
    return float(schema.decode(out[0].cpu().numpy())["age"])


def on_model_grid(prepared: Prepared, rec: np.ndarray, edited: np.ndarray) -> np.ndarray:
    """The edited brain as the predictor sees it: the prepared image plus the change."""
    image = np.where(prepared.mask, prepared.image + edited - rec, 0)
    return np.clip(image, 0, 1.2).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--plain", type=Path, help="bundle of a plain diffusion, as a baseline")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--no-mask", action="store_true", help="let cfgen find the brain")
    parser.add_argument("--every", type=int, default=1, help="every n-th subject only")
    parser.add_argument("--renders", nargs="+", default=["residual", "warp"])
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = pick_device("cpu")
    bundle = read_bundle(options.bundle)
    schema = bundle.schema
    methods = {"cfgen": load_models(bundle, device)}
    methods["ridge"] = methods["cfgen"]
    if options.plain:
        methods["plain"] = load_models(read_bundle(options.plain), device)
    predictor = load_predictor(bundle, device)
    finder, expected = brain_finder(bundle, "auto", device), due(options.data)
    rows = [r for r in _rows(options.data / "participants.csv") if r["split"] == "val"]
    table = []
    for row in rows[:: options.every]:
        scan = read_volume(options.data / row["image"])
        labels = np.rint(read_volume(options.data / row["labels"]).data).astype(int)
        label_path = None if options.no_mask else options.data / row["labels"]
        brain = find_brain(scan, label_path, finder)
        prepared = prepare(scan, brain.mask, bundle.preprocess)
        truth = labels > 0
        dice = 2 * (truth & brain.mask).sum() / (truth.sum() + brain.mask.sum())
        factual = {"age": float(row["age"]), "sex": row["sex"]}
        c = condition_of(schema, factual, device)
        deltas = [d for d in DELTAS if 18 <= factual["age"] + d <= 90]
        targets = [
            condition_of(schema, factual | {"age": factual["age"] + d}, device) for d in deltas
        ]
        ventricles = ventricle_count(scan.data, labels, "dlmuse", min(scan.grid.spacing))
        own = ventricles.count(scan.data)
        age = predicted_age(predictor, prepared.image, schema, device)
        for name, models in methods.items():
            z0 = models.encode(torch.from_numpy(prepared.image)[None, None])
            rec, latents, round_trip = edits(models, z0, c, targets, name)
            decoded = models.decode(rec)[0, 0].numpy()
            plain_rec = models.decode(z0)[0, 0].numpy()
            for delta, latent in zip(deltas, latents, strict=True):
                edited = models.decode(latent)[0, 0].numpy()
                entry = {
                    "subject": row["subject"],
                    "age": factual["age"],
                    "dice": round(float(dice), 4),
                    "psnr": round(psnr(plain_rec, prepared.image, prepared.mask), 3),
                    "ssim": round(ssim(plain_rec, prepared.image, prepared.mask), 4),
                    "predicted_age": round(age, 2),
                    "method": name,
                    "round_trip": round(round_trip, 6),
                    "delta": delta,
                    "due": round(
                        float(expected(factual["age"] + delta) - expected(factual["age"])), 4
                    ),
                    "predicted_after": round(
                        predicted_age(
                            predictor, on_model_grid(prepared, decoded, edited), schema, device
                        ),
                        2,
                    ),
                }
                for how in options.renders if name == "cfgen" else ["residual"]:
                    data = render(scan, prepared, decoded, edited, how)
                    entry[how] = round(float(np.log(ventricles.count(data) / own)), 4)
                table.append(entry)
        log.info("%s psnr %.2f dice %.3f", row["subject"], table[-1]["psnr"], dice)
        _write(options.out / "table.csv", table)
    print(summary(table))
    (options.out / "summary.txt").write_text(summary(table) + "\n")


def summary(table: list[dict]) -> str:
    """Means over subjects, a line a method and age group."""
    first = {r["subject"]: r for r in table if r["method"] == "cfgen"}.values()
    mae = np.mean([abs(r["predicted_age"] - r["age"]) for r in first])
    lines = [
        f"subjects {len(first)}",
        f"brain Dice {np.mean([r['dice'] for r in first]):.4f}, "
        f"lowest {min(r['dice'] for r in first):.4f}",
        f"PSNR {np.mean([r['psnr'] for r in first]):.2f} dB, "
        f"SSIM {np.mean([r['ssim'] for r in first]):.4f}",
        f"age MAE on real scans {mae:.2f} years",
        f"round trip: worst {max(r['round_trip'] for r in table):.2e}",
        "",
        "method render delta n  change  due    ratio of logs  sign right  age MAE after",
    ]
    for method in dict.fromkeys(r["method"] for r in table):
        for how in ("residual", "warp", "latent"):
            for delta in DELTAS:
                rows = [
                    r for r in table if r["method"] == method and r["delta"] == delta and how in r
                ]
                if not rows:
                    continue
                change, owed = np.mean([r[how] for r in rows]), np.mean([r["due"] for r in rows])
                sign = np.mean([np.sign(r[how]) == np.sign(delta) for r in rows])
                after = np.mean([abs(r["predicted_after"] - r["age"] - delta) for r in rows])
                figures = f"{np.exp(change):.3f}  {np.exp(owed):.3f}  {change / owed:5.2f}"
                lines.append(
                    f"{method:6} {how:8} {delta:+4d} {len(rows):3d}  {figures}"
                    f"          {sign:4.0%}        {after:5.1f}"
                )
    return "\n".join(lines)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(k for r in rows for k in r))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
