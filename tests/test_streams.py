"""Random streams: none meets another, and each is the same wherever it is asked for."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from cfgen.config import FitConfig
from cfgen.edit.samples import sample_noise
from cfgen.sim import cohort
from cfgen.sim.graph import graph
from cfgen.streams import Purpose, stream, torch_stream, uniforms
from cfgen.train.fit import fit

CPU = torch.device("cpu")


def test_no_two_streams_begin_alike():
    places = itertools.product((0, 1), Purpose, (0, 1, "a"), (0, 1))
    firsts = [int(stream(*place).integers(2**63)) for place in places]
    assert len(set(firsts)) == len(firsts)
    both = [int(torch_stream(0, p, s).initial_seed()) for p in Purpose for s in (0, 1)]
    assert len(set(both)) == len(both)


def test_a_stream_is_the_same_whoever_asks():
    once, again = (stream(3, Purpose.TEXTURE, 7, 2).random(5) for _ in range(2))
    assert np.array_equal(once, again)
    negative = stream(-1, Purpose.TEXTURE).random(3)
    assert not np.array_equal(negative, stream(1, Purpose.TEXTURE).random(3))


def test_texture_of_the_first_subject_is_not_the_visits():
    """Both came from one place of one counter: subject 0's texture was everybody's later visit."""
    table = uniforms(0, Purpose.VISITS, 0, 1, 64)[0]
    texture = stream(0, Purpose.TEXTURE, 0).bit_generator.random_raw(64)
    raw = ((texture >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    assert not np.isin(table, raw).any()


def test_later_visits_differ_between_seeds_and_not_between_shards():
    def later(seed: int, start: int) -> np.ndarray:
        some = cohort.sample(graph(), cohort.preset("lifespan"), seed, start, 4, visits=2)
        return np.concatenate([s.noise.regions for s in some if s.visit and s.number == 3])

    assert np.array_equal(later(0, 0), later(0, 3))
    assert not np.array_equal(later(0, 0), later(1, 0))


def test_people_do_not_share_the_noise_of_their_samples():
    shape = (1, 4, 6, 6, 6)
    a, b = (sample_noise(shape, 0, subject, 1, CPU) for subject in ("sha-a", "sha-b"))
    assert not torch.equal(a, b)
    assert abs(float(np.corrcoef(a.flatten(), b.flatten())[0, 1])) < 0.2
    assert torch.equal(a, sample_noise(shape, 0, "sha-a", 1, CPU))
    assert sample_noise(shape, 0, "sha-a", 0, CPU) is None


def test_batches_and_losses_of_training_draw_from_streams_of_their_own(tmp_path):
    """One seed for both gave a loss the very numbers that had chosen its batch."""
    drawn = []

    class Task:
        critic = None

        def __init__(self) -> None:
            self.net = torch.nn.Linear(1, 1)

        def loss(self, step, generator):
            batch, own = torch.randn(8, generator=generator), torch.randn(8)
            drawn.append((batch, own))
            return self.net(batch[:, None]).square().mean(), {}

        def critic_loss(self, step):
            return None

        def report(self, net, picture):
            return {"x": 0.0}

    fit(Task(), FitConfig(3, 1e-3), tmp_path)
    for batch, own in drawn:
        assert not torch.equal(batch, own)
    assert not torch.equal(drawn[0][0], drawn[1][0])
