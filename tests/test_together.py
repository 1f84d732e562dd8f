"""Two processes train as one does, and what was killed ends as what was not."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import together
import torch

from cfgen import device as devices
from cfgen import processes
from cfgen.errors import UsageError
from cfgen.train.fit import CHECKPOINT
from cfgen.train.together import check_batch, my_part

SCRIPT = Path(__file__).with_name("together.py")
FIT = together.FIT


def two(*tasks: tuple[str, Path], die: int = -1) -> subprocess.CompletedProcess[str]:
    """The script in two processes that torchrun starts."""
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return started(run, *tasks, die=die)


def started(
    run: list[str], *tasks: tuple[str, Path], die: int = -1
) -> subprocess.CompletedProcess[str]:
    asked = [f"{name}={folder}" for name, folder in tasks]
    return subprocess.run(
        [sys.executable, *run, SCRIPT, *asked, f"die={die}"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def one(monkeypatch):
    """The script in this process."""
    monkeypatch.setattr(devices, "fast_bf16", devices.fast_bf16)
    return together.train


def curve(folder: Path) -> dict[str, torch.Tensor]:
    with (folder / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [n for n in rows[0] | rows[-1] if n != "step"]
    return {n: torch.tensor([float(r[n] or "nan") for r in rows]) for n in names}


def same_curves(found: Path, expected: Path) -> None:
    """But for rounding, which Adam's steps make a little larger."""
    curves = curve(found), curve(expected)
    assert curves[0].keys() == curves[1].keys()
    for name, values in curves[1].items():
        assert len(values) == FIT.steps
        assert torch.allclose(curves[0][name], values, rtol=1e-3, atol=1e-5, equal_nan=True), name


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    done = two(*((name, folder / name) for name in together.TASKS))
    assert done.returncode == 0, done.stderr
    return folder


def test_the_group_ends_before_its_processes_do(tmp_path):
    """A thread of gloo that outlives the interpreter may abort the process."""
    done = two(("latent_diffusion", tmp_path))
    assert done.stdout.count("threads at the end: python\n") == 2, done.stdout


@pytest.mark.parametrize("name", together.TASKS)
def test_two_processes_have_the_losses_of_one(pair, one, tmp_path, name):
    one(name, tmp_path)
    same_curves(pair / name, tmp_path)
    assert len(curve(tmp_path)["loss"].unique()) == FIT.steps
    if name == "autoencoder":
        assert curve(tmp_path)["critic"].isfinite().sum() == FIT.steps / 2


def test_what_was_stopped_ends_alike_in_any_number_of_processes(pair, one, tmp_path, monkeypatch):
    """Two are killed and go on: the same bytes. One goes on for two, and two for one."""
    whole = pair / "cycle"
    killed = two(("cycle", tmp_path / "killed"), die=5)
    assert killed.returncode != 0
    assert "SIGKILL" in killed.stderr
    # The last checkpoint was at step 3.
    assert len(curve(tmp_path / "killed")["loss"]) == 3
    shutil.copytree(tmp_path / "killed", tmp_path / "one for two")
    one("cycle", tmp_path / "one for two")
    same_curves(tmp_path / "one for two", whole)

    class StoppedError(Exception):
        pass

    def stopping(step: int, generator: torch.Generator):
        if step == 4:
            raise StoppedError
        return loss(step, generator)

    task = together.cycle()
    loss, task.loss = task.loss, stopping
    monkeypatch.setitem(together.TASKS, "cycle", lambda: task)
    with pytest.raises(StoppedError):
        one("cycle", tmp_path / "two for one")
    ended = two(*(("cycle", tmp_path / n) for n in ("killed", "two for one")))
    assert ended.returncode == 0, ended.stderr
    same_curves(tmp_path / "two for one", whole)
    for file in (CHECKPOINT, "log.csv"):
        assert (tmp_path / "killed" / file).read_bytes() == (whole / file).read_bytes()


def test_a_killed_cycle_goes_on_to_the_same_bytes(tmp_path):
    killed = started([], ("cycle", tmp_path / "killed"), die=5)
    assert killed.returncode == -signal.SIGKILL
    assert len(curve(tmp_path / "killed")["loss"]) == 3
    ended = started([], *(("cycle", tmp_path / n) for n in ("killed", "whole")))
    assert ended.returncode == 0, ended.stderr
    for file in (CHECKPOINT, "log.csv"):
        found = (tmp_path / "killed" / file).read_bytes()
        assert found == (tmp_path / "whole" / file).read_bytes()


def test_a_batch_without_equal_parts_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UsageError, match=r"4 in 3 processes; expected a multiple of 3"):
        check_batch(4)
    check_batch(6)
    assert not processes.leads()


def test_alone_the_batch_is_one_s_own():
    assert processes.leads()
    assert my_part(5) == slice(0, 5)
