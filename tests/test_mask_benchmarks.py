"""What benchmarks of decoders, masks and the alcohol study count on."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from cfgen.config import FitConfig

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


class Line:
    """y = w x, whose loss a step knows."""

    critic = None

    def __init__(self) -> None:
        self.net = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.net.weight)
        self.steps: list[tuple[int, int]] = []
        self.fit = FitConfig(1000, 0.05)

    def loss(self, step: int, generator: torch.Generator):
        self.steps.append((step, self.fit.steps))
        x = torch.randn(16, 1, generator=generator)
        return (self.net(x) - 3 * x).square().mean(), {}

    def critic_loss(self, step: int) -> None:
        return None

    def report(self, net: nn.Module, picture: Path) -> dict[str, float]:
        return {}


def test_a_training_for_a_time_ends_then_and_is_not_repeated(
    benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paced, task = benchmark("paced"), Line()
    # A clock that goes on by a thousandth whenever it is looked at.
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: next(ticks) / 1000)
    monkeypatch.setattr(paced, "time", clock)
    config = FitConfig(1000, 0.05, ema_decay=0.9, warmup_steps=1)
    net = paced.fit_within(task, config, tmp_path, 1.0)
    assert net.weight.item() == pytest.approx(3.0, abs=0.05)
    # The last step is told that it is the last, or nearly.
    step, steps = task.steps[-1]
    assert step + 1 == pytest.approx(steps, rel=0.1)
    before = len(task.steps)
    again = paced.fit_within(task, config, tmp_path, 1.0)
    assert len(task.steps) == before
    assert torch.equal(again.weight, net.weight)


def test_detail_is_all_there_in_the_image_and_less_in_a_blurred_one(benchmark) -> None:
    decoders = benchmark("decoders")
    rng = np.random.default_rng(0)
    image, mask = rng.normal(0.5, 0.1, (40, 40, 40)), np.zeros((40, 40, 40), bool)
    mask[5:35, 5:35, 5:35] = True
    assert decoders.detail(image, image, mask) == pytest.approx((1.0, 1.0))
    power, coherence = decoders.detail(ndimage.gaussian_filter(image, 0.7), image, mask)
    assert power < 0.2
    assert 0.7 < coherence < 1
    power, coherence = decoders.detail(rng.normal(0.5, 0.1, image.shape), image, mask)
    assert power == pytest.approx(1, abs=0.1)
    assert abs(coherence) < 0.1


def test_a_study_of_volumes_finds_the_disorder_in_true_counterfactuals(benchmark) -> None:
    tables = benchmark("aud_tables")
    found = tables.studies(tables.SEED + 1, disorder=True)
    frontal = {f.comparison: f for f in found["oracle"] if f.region == "frontal"}
    assert frontal["control vs counterfactual AUD"].significant
    assert not frontal["control vs counterfactual control"].significant
    # The scan itself is no counterfactual: paired with itself there is no difference.
    copied = [f for f in found["copy"] if f.comparison == "control vs counterfactual AUD"]
    assert all(f.p == 1 for f in copied)
    # The law has no arrow to the occipital lobe.
    asked = [f for f in found["asked"] if f.region == "occipital" and np.isfinite(f.paired_p)]
    assert all(not f.significant for f in asked)


def test_everybody_is_in_the_law_of_the_other_folds(benchmark, tmp_path: Path) -> None:
    aud = benchmark("aud_people")
    people = aud.everybody()
    assert len(people) == 421
    assert sum(p.parents.aud[0] for p in people) == 222
    laws = aud.laws(tmp_path, "true")
    assert len(laws) == aud.FOLDS
    effects = [law.mechanisms["cortex_frontal"].beta[-1] for law in laws]
    assert len(set(np.round(effects, 6))) == aud.FOLDS


def test_people_of_another_age_differ_by_their_regression_and_edits_by_their_images(
    benchmark,
) -> None:
    maps = benchmark("age_maps")
    age, male = np.linspace(20, 80, 40), np.arange(40) % 2.0
    law = np.stack([3 * age + 0.05 * age**2 + 10 * male, -age], 1)
    people = maps.People(law, age, male)
    assert people.change(30, 50) == pytest.approx([60 + 80, -20])
    # Half of that by the first method, nothing by the other; once up and once down.
    edits = []
    for now, then in ((30, 50), (50, 30)):
        scan = np.array([500.0, 40.0])
        made = np.stack([scan, scan + 0.5 * people.change(now, then), scan])
        edits.append({"ages": np.array([now, then]), "volumes": made})
    due, (first, second) = maps.per_20_years(people, edits, "volumes")
    assert due == pytest.approx([140, -20])
    assert first == pytest.approx([70, -10])
    assert second == pytest.approx([0, 0])


def test_brightness_is_read_by_depth_below_the_edge(benchmark) -> None:
    maps = benchmark("age_maps")
    x, y, z = np.mgrid[:80, :96, :88] - np.array([40, 48, 44]).reshape(3, 1, 1, 1)
    radius = np.sqrt(x**2 + y**2 + z**2)
    # A ball of 60 mm, dark in the outermost 4 mm, with a ventricle that is no edge.
    image = np.where(radius < 30, np.where(radius < 28, 0.9, 0.3), 0)
    image[radius < 3] = 0
    depth = maps.depth_of(image)
    assert depth.max() == pytest.approx(60, abs=2)
    rim, *_, deep = maps.shells(image, depth)
    assert rim == pytest.approx(0.3)
    assert deep == pytest.approx(0.9)
