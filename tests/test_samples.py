"""Several samples of a counterfactual: their mathematics, and what they leave on disk."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from cfgen.config import EDIT
from cfgen.data.conditions import parse_interventions
from cfgen.data.volume import file_sha256, read_volume
from cfgen.data.volumes import RegionVolume, sums
from cfgen.diffusion.schedule import time_grid
from cfgen.edit.engine import load_engine
from cfgen.edit.latent import abduct, condition_of, edit_latent
from cfgen.edit.samples import intervals, sample_noise, summarise
from cfgen.errors import UsageError
from cfgen.jobs.counterfactual import counterfactual
from cfgen.jobs.counterfactual_files import Options
from cfgen.measure.segmenter import segment
from cfgen.nets.condition import Condition
from cfgen.scan.brain import find_brain
from cfgen.scan.gate import Gate
from cfgen.scan.open import look_at
from cfgen.scan.render import render

pytestmark = pytest.mark.usefixtures("prepared_once")
CPU = torch.device("cpu")
GIVEN = {"age": 50.0, "sex": "F"}
COUNT = 2


@pytest.fixture(scope="module")
def engine(segmenter_bundle):
    return load_engine(segmenter_bundle.path, "cpu")


def edit(engine, scan, folder, *ages, **options):
    wanted = parse_interventions(engine.bundle.schema, ages)
    outputs = {i: folder / f"{i.label()}.nii.gz" for i in wanted}
    return counterfactual(
        engine, scan, outputs, given=GIVEN, options=Options(picture=False, **options)
    )


@pytest.fixture(scope="module")
def edited(engine, stripped_scan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    edit(engine, stripped_scan, folder, "+20", "+0", samples=COUNT)
    return folder


@pytest.fixture(scope="module")
def alone(engine, stripped_scan):
    """Every sample's image of +20, rendered one by one."""
    scan = read_volume(stripped_scan)
    brain = find_brain(scan, None, engine.finder)
    prepared = look_at(scan, brain, engine.bundle.preprocess, Gate()).prepared
    subject = file_sha256(stripped_scan)
    models, schema = engine.models, engine.bundle.schema
    z0 = models.encode(torch.from_numpy(prepared.image)[None, None])
    c, target = (condition_of(schema, {"age": age, "sex": "F"}, CPU) for age in (50.0, 70.0))
    images = []
    for k in range(COUNT):
        noise = sample_noise(z0.shape, 0, subject, k, CPU)
        made = edit_latent(models, z0, c, [target], EDIT, noise)
        pair = (made.reconstruction, made.counterfactuals[0])
        factual, changed = (models.decode(z)[0, 0].numpy() for z in pair)
        images.append(render(scan, prepared, factual, changed, "residual"))
    return images


def test_image_is_the_mean_of_samples_rendered_one_by_one(edited, alone):
    made = read_volume(edited / "age+20.nii.gz").data
    # The output is stored as the input's integers.
    assert np.abs(made - np.mean(alone, axis=0)).max() <= 0.5 + 1e-2


def test_sd_is_that_of_samples_rendered_one_by_one(edited, alone):
    sd = read_volume(edited / "age+20_sd.nii.gz")
    assert sd.grid.matches(read_volume(edited / "age+20.nii.gz").grid)
    expected = np.std(alone, axis=0, ddof=1)
    assert expected.max() > 1
    assert np.abs(sd.data - expected).max() < 0.01
    assert not sd.data[np.all(np.array(alone) == 0, axis=0)].any()


def test_intervals_are_those_of_each_samples_own_volumes(edited, alone, engine, stripped_scan):
    scan = read_volume(stripped_scan)
    net = engine.finder.segmenter
    tables = [sums(segment(net, scan.like(image), CPU).volumes) for image in alone]
    said = json.loads((edited / "age+20.json").read_text())["Samples"]
    assert said["Count"] == COUNT
    assert said["StandardDeviation"] == "age+20_sd.nii.gz"
    found = {(r["Structure"], r["Side"]): r for r in said["Regions"]}
    assert set(found) == set(tables[0])
    for key, row in found.items():
        values = [table[key] for table in tables]
        mean, sd = np.mean(values), np.std(values, ddof=1)
        reach = stats.t.ppf(0.975, COUNT - 1) * sd * np.sqrt(1 + 1 / COUNT)
        # Volumes are rounded to 0.1 mm3.
        assert row["Mean_mm3"] == pytest.approx(mean, abs=0.06), key
        assert row["SD_mm3"] == pytest.approx(sd, abs=0.06), key
        assert row["Low95_mm3"] == pytest.approx(max(mean - reach, 0), abs=0.06), key
        assert row["High95_mm3"] == pytest.approx(mean + reach, abs=0.06), key


def test_a_null_edit_has_no_spread_and_returns_the_input(edited, stripped_scan):
    assert not read_volume(edited / "age+0_sd.nii.gz", blank=True).data.any()
    made, scan = read_volume(edited / "age+0.nii.gz"), read_volume(stripped_scan)
    assert np.array_equal(made.data, scan.data)
    regions = json.loads((edited / "age+0.json").read_text())["Samples"]["Regions"]
    assert len(regions) > 40
    assert {row["SD_mm3"] for row in regions} == {0}


def test_same_seed_same_bytes_and_another_seed_others(engine, stripped_scan, edited, tmp_path):
    for name, seed in (("same", 0), ("other", 1)):
        edit(engine, stripped_scan, tmp_path / name, "+20", samples=COUNT, seed=seed)
    same = sorted((tmp_path / "same").iterdir())
    assert [p.name for p in same] == [f"age+20{end}" for end in (".json", ".nii.gz", "_sd.nii.gz")]
    for path in same:
        assert path.read_bytes() == (edited / path.name).read_bytes(), path.name
    for name in ("age+20.nii.gz", "age+20_sd.nii.gz"):
        assert (tmp_path / "other" / name).read_bytes() != (edited / name).read_bytes()


def test_no_sample_is_refused(engine, stripped_scan, tmp_path, cfgen):
    with pytest.raises(UsageError, match="--samples: 0; expected 1 or more"):
        edit(engine, stripped_scan, tmp_path, "+20", samples=0)
    code, _, said = cfgen("counterfactual", "--in", stripped_scan, "--age", "+5", "--samples", 0)
    assert code == 2
    assert "--samples" in said
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_of_samples_without_a_segmenter(cfgen, tiny_bundle, stripped_scan, tmp_path):
    (tmp_path / "cohort.csv").write_text(f"subject,image,age,sex\n01,{stripped_scan},40,M\n")
    code, _, said = cfgen(
        *("counterfactual", "--manifest", tmp_path / "cohort.csv", "--age", "+9", "--samples", 2),
        *("--bundle", tiny_bundle.path, "--out", tmp_path / "out", "--no-picture"),
    )
    assert code == 0, said
    assert read_volume(tmp_path / "out" / "01_age+9_sd.nii.gz").data.max() > 0
    samples = json.loads((tmp_path / "out" / "01_age+9.json").read_text())["Samples"]
    assert samples["Regions"] == []
    assert "no segmenter" in samples["Volumes"]


def test_the_same_noise_goes_into_reconstruction_and_targets(engine):
    models = engine.models
    z0 = torch.randn((1, 8, 20, 24, 22), generator=torch.Generator().manual_seed(0))
    c = condition_of(engine.bundle.schema, GIVEN, CPU)
    noise = sample_noise(z0.shape, 0, "a", 1, CPU)
    made = edit_latent(models, z0, c, [c], EDIT, noise)
    assert torch.equal(made.reconstruction, made.counterfactuals[0])
    other = edit_latent(models, z0, c, [], EDIT, sample_noise(z0.shape, 0, "a", 2, CPU))
    assert not torch.equal(made.reconstruction, other.reconstruction)


def test_at_depth_0_the_edit_is_the_latent_means(engine):
    models, schema = engine.models, engine.bundle.schema
    z0 = torch.randn((1, 8, 20, 24, 22), generator=torch.Generator().manual_seed(0))
    c, target = (condition_of(schema, {"age": age, "sex": "F"}, CPU) for age in (50.0, 70.0))
    made = edit_latent(models, z0, c, [target], replace(EDIT, depth=0.0))
    assert made.round_trip < 1e-6
    due = models.latent_mean.mean(target.vector) - models.latent_mean.mean(c.vector)
    # The gain of this bundle is 1 everywhere.
    assert torch.allclose(made.counterfactuals[0] - z0, due, atol=1e-5)
    assert due.abs().max() > 1e-3


def test_a_sample_abducts_by_the_forward_process(engine):
    schedule = engine.models.schedule
    r = torch.full((1, 8, 20, 24, 22), 2.0)
    times = time_grid(5, 600)
    noise = sample_noise(r.shape, 7, "a", 3, CPU)
    rt = abduct(engine.models, r, Condition(torch.zeros(1, 2)), times, 2, noise)
    a = float(schedule.alpha_bar[600])
    assert torch.allclose(rt, a**0.5 * r + (1 - a) ** 0.5 * noise, atol=1e-6)


def test_noise_belongs_to_seed_subject_and_sample():
    assert sample_noise((4,), 0, "a", 0, CPU) is None
    own = ((0, "a", 1), (0, "a", 2), (1, "a", 1), (-5, "a", 1), (0, "b", 1))
    drawn = [sample_noise((4000,), *place, CPU) for place in own]
    assert torch.equal(drawn[0], sample_noise((4000,), *own[0], CPU))
    # Standard normal, and no two alike.
    assert np.abs(np.cov(np.stack(drawn)) - np.eye(5)).max() < 0.1


def test_one_pass_gives_mean_and_sd_far_from_zero():
    images = np.random.default_rng(0).normal(5000, 1, (7, 4, 5, 6)).astype(np.float32)
    kept = images.copy()
    found = summarise(iter(images))
    assert np.allclose(found.mean, kept.mean(0), atol=2e-3)
    assert np.allclose(found.sd, kept.std(0, ddof=1), atol=2e-3)
    assert np.array_equal(images, kept)
    single = summarise([images[0]])
    assert single.sd is None
    assert np.array_equal(single.mean, images[0])


def test_interval_of_known_numbers():
    volumes = [[RegionVolume("amygdala", "left", 0, v)] for v in (900.0, 1100.0)]
    (both, left) = intervals(volumes)
    assert (left.side, both.side) == ("left", "both")
    assert left.mean == 1000
    assert left.sd == 141.4
    # t(0.975, 1) = 12.706: two samples say little.
    assert left.high95 == pytest.approx(1000 + 12.706 * 141.42 * 1.5**0.5, abs=0.2)
    assert left.low95 == 0
    # Both sides are the sum, here of one.
    assert replace(both, side="left") == left
