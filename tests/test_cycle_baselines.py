"""The baselines of benchmarks/cycle.py on images of 16 voxels' edge: closed forms, causality, and
trainings that go on."""

from __future__ import annotations

import csv
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cfgen.config import FitConfig
from cfgen.errors import Interrupted, UsageError
from cfgen.train.fit import fit

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import cycle_ar
import cycle_brains
import cycle_compare
import cycle_gan
from cycle_ar_nets import Tokeniser, Transformer
from cycle_gan_nets import gradient_penalty

SHAPE = (16, 16, 16)
FIT = FitConfig(
    steps=40, learning_rate=2e-3, batch_size=4, warmup_steps=5, ema_decay=0.8, report_every=1000
)
GAN = {"code": 4, "channels": (16, 8, 8), "trunk": (8, 16)}
AR = cycle_ar.Ar(codes=32, embedding=4, channels=(8, 8, 8), width=16, layers=2, heads=2)


def people_in(folder: Path, n: int, brightness=lambda age: age / 100) -> Path:
    """A table and images of `n` train people and four of val: balls whose brightness is their
    age's."""
    rng = np.random.default_rng(0)
    place = np.stack(np.meshgrid(*[np.arange(16) - 7.5] * 3, indexing="ij"))
    ball = (np.square(place).sum(0) < 36).astype(np.float32)
    table, images = [], []
    for number in range(n + 4):
        age = float(rng.uniform(20, 80))
        split = "train" if number < n else "val"
        male = number % 2
        row = {"number": number, "split": split, "made": 1, "age": age, "male": male}
        table.append(row)
        images.append(ball * (0.3 + brightness(age) + 0.02 * rng.standard_normal(SHAPE)))
    folder.mkdir(exist_ok=True)
    with (folder / "people.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    np.save(folder / "images.npy", np.stack(images).astype(np.float16))
    return folder


def brains_in(folder: Path) -> cycle_brains.Brains:
    model = cycle_brains.describe(folder, "any", AR, 1000)
    return cycle_brains.brains_of(cycle_brains.read_people(folder), model.schema, model.numbers)


@pytest.fixture(autouse=True)
def _single_precision(monkeypatch):
    """Maps of two voxels' edge are too small for the bf16 kernels of a CPU."""
    monkeypatch.setattr("cfgen.device.fast_bf16", lambda device: False)


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    return brains_in(people_in(tmp_path_factory.mktemp("people"), 24))


def test_the_penalty_is_the_closed_form():
    draw = torch.Generator().manual_seed(0)
    real, fake, w = (torch.randn(3, 1, 4, 4, 4, generator=draw).double() for _ in range(3))
    u = torch.rand(3, generator=draw).double()
    # Linear: the gradient is w anywhere.
    linear = gradient_penalty(lambda x: (w[:1] * x).sum((1, 2, 3, 4)), real, fake, u)
    torch.testing.assert_close(linear, (w[0].norm() - 1).square())
    # A parabola: the gradient is the place itself.
    parabola = gradient_penalty(lambda x: x.square().sum((1, 2, 3, 4)) / 2, real, fake, u)
    v = u[:, None]
    place = v * real.flatten(1) + (1 - v) * fake.flatten(1)
    torch.testing.assert_close(parabola, (place.norm(dim=1) - 1).square().mean())


def test_what_age_does_to_the_mean_image(brains):
    """Brightness goes up by 0.01 a year: a standard deviation of age is one of brightness."""
    spread = np.std([i[8, 8, 8] for i in brains.images[:24]])
    assert brains.older[8, 8, 8] == pytest.approx(spread, rel=0.1)
    assert brains.heard(brains.older) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["vae-gan", "alpha-gan"])
def test_where_codes_say_nothing_the_generator_listens_to_age(kind, tmp_path, brains):
    gan = cycle_gan.Gan(kind, kl=1e5, codes=10.0, anchor=10.0, adversarial=0.0, **GAN)
    config = replace(FIT, steps=60)
    task = cycle_gan.TASKS[kind](brains, config, gan)
    before = task.report(task.net, tmp_path / "before.png")
    after = task.report(fit(task, config, tmp_path), tmp_path / "after.png")
    assert abs(before["heard_new"]) < 0.1
    assert 0.4 < after["heard_new"] < 1.4
    assert after["psnr_db"] > before["psnr_db"] + 2


def test_the_encoder_of_a_vae_gan_learns_nothing_from_being_fooled(brains):
    gan = cycle_gan.Gan("vae-gan", similarity=0.0, kl=0.0, **GAN)
    task = cycle_gan.VaeTask(brains, FIT, gan)
    task.loss(0, torch.Generator().manual_seed(0))[0].backward()
    assert all(not p.grad.any() for p in task.net["encoder"].parameters())
    assert any(p.grad.any() for p in task.net["generator"].parameters())
    assert all(p.grad is None for p in task.critic.parameters())


def test_a_critic_hears_conditions_only_where_it_is_told_to(brains):
    for hears in (False, True):
        task = cycle_gan.VaeTask(brains, FIT, cycle_gan.Gan("vae-gan", critic_hears=hears, **GAN))
        x, c = brains.batch(4, torch.Generator().manual_seed(0))
        same = torch.equal(task.critic(x, c)[0], task.critic(x, c + 1)[0])
        assert same is not hears


def stopped_at(task, step: int):
    """The task, whose process is told to stop during `step`."""
    loss = task.loss

    def stopping(number, generator):
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(number, generator)

    task.loss = stopping
    return task


def ar_task(brains, folder):
    tokeniser = Tokeniser(brains.centre, AR.codes, AR.embedding, AR.channels).eval()
    tokens = torch.stack([tokeniser.tokens(brains.image(n)[None, None]) for n in range(24)])
    return cycle_ar.TransformerTask(
        cycle_ar.Tokens(tokens, tokens[:4, 0]), brains, tokeniser, FIT, AR
    )


@pytest.mark.parametrize("kind", ["vae-gan", "alpha-gan", "tokens", "ar"])
def test_a_training_that_was_stopped_ends_with_the_same_weights(kind, tmp_path, brains):
    config = replace(FIT, steps=6, report_every=100)

    def task():
        if kind == "tokens":
            return cycle_ar.TokeniserTask(brains, config, AR)
        if kind == "ar":
            torch.manual_seed(1)
            return ar_task(brains, tmp_path)
        return cycle_gan.TASKS[kind](brains, config, cycle_gan.Gan(kind, **GAN))

    whole = fit(task(), config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(stopped_at(task(), 2), config, tmp_path / "parts")
    parts = fit(task(), config, tmp_path / "parts")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name


def transformer(seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(32, (2, 2, 3), 2, width=16, layers=2, heads=2).eval()


def test_a_token_is_told_by_what_came_before_alone():
    net = transformer()
    tokens, c = torch.randint(32, (2, 12)), torch.randn(2, 2)
    scores = net(tokens, c)
    for n in range(12):
        later = tokens.clone()
        later[:, n] = (later[:, n] + 1) % 32
        changed = (net(later, c) - scores).abs().amax((0, 2)) > 1e-6
        assert changed.tolist() == [k > n for k in range(12)]
    assert ((net(tokens, c + 1) - scores).abs().amax((0, 2)) > 1e-6).all()


def test_sampling_with_kept_keys_is_sampling_without():
    net, draw = transformer(), torch.Generator().manual_seed(0)
    c, uniforms = torch.randn(3, 2, generator=draw), torch.rand(3, 12, generator=draw)
    tokens = net.sample(c, uniforms)
    total = net(tokens, c).double().softmax(-1).cumsum(-1)
    expected = (total < uniforms.double()[..., None]).sum(-1)
    assert torch.equal(tokens, expected)
    # A person's tokens do not depend on who else is drawn.
    assert torch.equal(net.sample(c[1:2], uniforms[1:2]), tokens[1:2])


def test_tokens_are_what_the_tokeniser_decodes(brains):
    task = cycle_ar.TokeniserTask(brains, FIT, AR)
    net = task.net.eval()
    x = brains.held_out[:, None]
    tokens = net.tokens(x)
    assert tokens.shape == (4, 8)
    assert tokens.max() < AR.codes
    back = net.decode(net.quantised(net.encode(x))[0])[:, 0].clamp(0, 1.2)
    torch.testing.assert_close(net.images(tokens), back)


def test_from_people_to_the_table(tmp_path, monkeypatch):
    folder = people_in(tmp_path / "people", 24)
    gan = cycle_gan.Gan("alpha-gan", **GAN)
    config = replace(FIT, steps=3)
    cycle_gan.train(folder, "gan", config, gan, 1000)
    before = cycle_brains.read_model(folder, "gan")
    # More people on disk change nothing for a training that was begun.
    people_in(folder, 30)
    cycle_gan.train(folder, "gan", config, gan, 1000)
    assert cycle_brains.read_model(folder, "gan") == before
    with pytest.raises(UsageError, match="other settings"):
        cycle_gan.train(folder, "gan", config, replace(gan, l1=3.0), 1000)
    cycle_gan.make(folder, "gan", 6, "val", 3)

    class Reader:
        """Reads an age in the brightness and in the order."""

        def judge(self, images):
            middle = images[:, 8, 8, 8].float().numpy()
            number = np.arange(len(images))
            return {"age": 50 * middle + number, "sex": number % 2}

    images, _, female = cycle_compare.new_in(folder / "gan")
    lines = cycle_compare.new_lines(Reader(), (images, np.zeros(6), female))
    assert [line["read"] for line in lines] == pytest.approx(
        [50 * float(x[8, 8, 8]) + k for k, x in enumerate(images)]
    )
    assert all(line["female"] == line["read female"] for line in lines)
    known = cycle_brains.read_people(folder)
    edited = list(
        cycle_compare.edits(known, Reader(), None, cycle_compare.changed_in(folder / "gan"))
    )
    assert len({line["subject"] for line in edited}) == 3
    assert {line["delta"] for line in edited} <= {-30, -10, 10, 30}
    for line in edited:
        own = float(known.table[int(line["subject"])]["age"])
        assert line["age"] == pytest.approx(own + line["delta"])
    assert list(cycle_compare.changed_in(tmp_path)) == []
    assert cycle_compare.new_in(tmp_path) is None


def test_a_truth_that_is_met_has_a_skill_of_one():
    draw = torch.Generator().manual_seed(0)
    scan, truth = torch.rand(2, *SHAPE, generator=draw) + 0.1
    met = cycle_compare.against(scan, torch.stack([scan, truth]), truth)
    assert met["skill"] == pytest.approx(1)
    # As far off as it is given back, the residual of the scan brings it right again.
    off = cycle_compare.against(scan, torch.stack([scan, truth]) + 0.5, truth)
    assert off["skill"] < 0
    assert off["skill with residual"] == pytest.approx(1, abs=1e-5)


def test_a_difference_to_the_control_is_that_of_the_same_people(tmp_path, capsys):
    """Three brains and people whose age the other model reads two years further off."""
    for name, off in (("plain-1", 1.0), ("plain-2", 3.0), ("cycle-1", 3.0), ("cycle-2", 5.0)):
        new = [
            {"subject": k, "age": a, "read": a + off, "female": k % 2, "read female": 0.9}
            for k, a in enumerate((30.0, 50.0, 70.0))
        ]
        more = {"delta": 10, "change": 5.0, "slope of change": 0.5}
        measured = dict.fromkeys(("skill", "skill with residual", "leakage"), 0.0)
        cycle_compare.keep(tmp_path / f"{name}-new.csv", new)
        edits = [line | more | measured for line in new]
        cycle_compare.keep(tmp_path / f"{name}-edits.csv", edits)
        cycle_compare.keep(tmp_path / f"{name}-sets.csv", [{"fid": 1.0}])
    for kind, lines in (("new", []), ("sets", []), ("edits", [new[0] | more | measured])):
        cycle_compare.keep(tmp_path / f"copy-{kind}.csv", lines)
    cycle_compare.print_table(tmp_path, ["cycle"], "plain")
    said = capsys.readouterr().out
    assert "plain, new brains: age error 2.00" in said
    assert "cycle less plain, new brains: age error 2.00" in said
    assert "cycle less plain, counterfactuals: sex right 0.00" in said
    assert "slope of the change 0.50" in said
    cycle_compare.print_table(tmp_path, [], "copy")
    said = capsys.readouterr().out
    assert "copy, new" not in said
    assert "copy, counterfactuals: age error 5.00" in said
