"""Shared pieces: a small bundle with random weights, a brain that the repository can carry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cfgen import cli
from cfgen.bundle import Bundle, copy_bundle, half, net_config, new_bundle, write_part
from cfgen.causal.latent_mean import LatentMean
from cfgen.config import Preprocess
from cfgen.data.conditions import Schema, default_schema
from cfgen.data.parcellation import NAMES
from cfgen.data.volume import Volume, write_new
from cfgen.measure.segmenter import segmenter_part
from cfgen.nets.autoencoder import Autoencoder, AutoencoderConfig, start_from_cosines
from cfgen.nets.condition import token_width
from cfgen.nets.predictors import Predictor, PredictorConfig
from cfgen.nets.segmenter import Segmenter, SegmenterConfig
from cfgen.nets.unet import UNet, UNetConfig
from cfgen.scan import open as open_room
from cfgen.scan.prepare import Prepared
from cfgen.scan.prepare import prepare as really_prepare
from cfgen.space.template import template_brain

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="real scans are not on this machine")

# Files that take minutes start first, so that no process is left alone with one at the end.
LONG = (
    "test_truth_benchmark.py",
    "test_gate.py",
    "test_counterfactual.py",
    "test_samples.py",
    "test_preprocess.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where networks, samplers and edits run")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


def shipped_schema() -> Schema:
    age, sex = default_schema().variables
    return Schema((replace(age, support=(20.0, 86.0)), sex))


def make_bundle(path: Path) -> Bundle:
    """All parts with small random networks; the linear path makes it a real, weak autoencoder."""
    torch.manual_seed(0)
    bundle = new_bundle(path, Preprocess(), shipped_schema(), {"name": "random weights"})
    config = AutoencoderConfig(
        (8, 8), (1, 1), (False, False), 8, norm_groups=4, pack=2, linear_path=True
    )
    autoencoder = Autoencoder(config)
    start_from_cosines(autoencoder)
    bundle = write_part(bundle, "autoencoder", half(autoencoder), net_config(config), {})
    mean = LatentMean(
        torch.full((2, 4), torch.nan),
        0.05 * torch.randn(3, 8, 20, 24, 22),
        torch.full((8, 1, 1, 1), 0.2),
        torch.ones(1),
    )
    bundle = write_part(bundle, "latent_mean", mean.tensors(), {"conditional": True}, {})
    unet = UNetConfig(8, 8, (8, 16), 1, (False, True), 8, token_width(2), norm_groups=4)
    net = UNet(unet)
    torch.nn.init.normal_(net.out[2].weight, std=0.02)
    schedule = {"kind": "cosine", "prediction": "v"}
    description = net_config(unet) | {"schedule": schedule}
    bundle = write_part(bundle, "unet", half(net), description, {})
    predictor = PredictorConfig(2, (80, 96, 88))
    return write_part(bundle, "predictor", half(Predictor(predictor)), net_config(predictor), {})


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def segmenter_bundle(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small bundle with a segmenter of random weights: it measures, but nothing sensible."""
    torch.manual_seed(0)
    config = SegmenterConfig(len(NAMES), (8, 8), norm_groups=4)
    copied = copy_bundle(tiny_bundle, tmp_path_factory.mktemp("bundles") / "segmenter")
    return write_part(copied, "segmenter", half(Segmenter(config)), segmenter_part(config), {})


@pytest.fixture(scope="session")
def stripped_scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The MNI template, a stripped T1w brain, as int16."""
    data, grid = template_brain()
    path = tmp_path_factory.mktemp("scans") / "mni_T1w.nii.gz"
    write_new(Volume(np.rint(data * 1000), grid.affine), path, np.int16)
    return path


@pytest.fixture(scope="module")
def prepared_once() -> Iterator[None]:
    """Scans are prepared once, not in every run: for tests of what comes after."""
    kept: dict[tuple[Path | None, int], Prepared] = {}

    def prepare(scan: Volume, mask: np.ndarray, recipe: Preprocess) -> Prepared:
        key = (scan.path, int(mask.sum()))
        if key not in kept:
            kept[key] = really_prepare(scan, mask, recipe)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_room, "prepare", prepare)
        yield


@pytest.fixture
def cfgen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["cfgen", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as done:
            code = int(done.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
