"""The closed-form adaptation against people whose shift is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cfgen.bundle import read_bundle
from cfgen.causal.adaptation import adapt_mean, adapt_scm, shrunk
from cfgen.causal.latent_mean import LatentMean
from cfgen.causal.scm import load_scm
from cfgen.cli.options import DEFAULT_BUNDLE

SHAPE = (3, 6, 8, 6)


def parent(variables=2):
    generator = torch.Generator().manual_seed(0)
    return LatentMean(
        torch.full((variables, 4), torch.nan),
        torch.randn(1 + variables, *SHAPE, generator=generator),
        torch.tensor([0.5, 1.0, 2.0]).reshape(3, 1, 1, 1),
        torch.ones(1),
    )


def scans(mean, n, shift=0.0, slope=0.0, spread=1.0, seed=1):
    """Latents of n people, in units of the parent's spread moved by `shift` and by `slope` times
    the first condition; conditions are not centred."""
    generator = torch.Generator().manual_seed(seed)
    c = torch.randn(n, 2, generator=generator) + 0.7
    noise = spread * torch.randn(n, *SHAPE, generator=generator)
    moved = shift + slope * c[:, :1, None, None, None]
    return mean.mean(c) + mean.sigma * (noise + moved), c


def missed(found, z0, c):
    """Of people who were not looked at, in squares of the spread."""
    return float(((z0 - found.mean(c)) / found.sigma).mean((0, 2, 3, 4)).square().mean())


def test_no_shift_leaves_the_parent_nearly_alone():
    mean = parent()
    z0, c = scans(mean, 10)
    moved = adapt_mean(mean, z0, c)
    raw = ((z0 - mean.mean(c)) / mean.sigma).mean(0)
    found = (moved.mean.coefficients[0] - mean.coefficients[0]) / mean.sigma
    # A tenth of what the mean of ten scans alone would have taken for a shift.
    assert found.square().mean() < 0.1 * raw.square().mean()
    assert moved.slopes == ()
    assert torch.allclose(moved.mean.sigma, mean.sigma, rtol=0.05)


@pytest.mark.parametrize("n", [5, 10])
def test_what_few_people_happen_to_share_is_no_shift(n):
    """A person's voxels go together, as anatomy does."""
    mean = parent()
    kept = []
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        shared = torch.randn(n, 3, generator=generator)
        field = torch.randn(3, *SHAPE, generator=generator)
        e = torch.einsum("nk,kcdhw->ncdhw", shared, field)
        c = torch.zeros(n, 2)
        kept.append(adapt_mean(mean, mean.mean(c) + mean.sigma * e, c, seed=seed).mean)
    moved = sum(not torch.equal(m.coefficients, mean.coefficients) for m in kept)
    # At 5 % more than eight of 60 would be 1 % likely.
    assert moved <= 8


@pytest.mark.parametrize("n", [3, 10, 40])
def test_a_channels_shift_is_found_from_few_scans(n):
    mean = parent()
    shift = torch.tensor([0.8, -0.5, 0.0]).reshape(1, 3, 1, 1, 1)
    z0, c = scans(mean, n, shift)
    moved = adapt_mean(mean, z0, c)
    # The mean over a channel of 288 voxels is known to 1 / sqrt(288 n).
    assert torch.allclose(moved.shift, shift.flatten(), atol=4 / (288 * n) ** 0.5)
    assert moved.slopes == ()


def test_a_map_of_shifts_is_kept_where_the_scans_show_one():
    mean, generator = parent(), torch.Generator().manual_seed(5)
    field = torch.randn(1, *SHAPE, generator=generator)
    field = field - field.mean((2, 3, 4), keepdim=True)
    z0, c = scans(mean, 40, field)
    moved = adapt_mean(mean, z0, c)
    found = (moved.mean.coefficients[0] - mean.coefficients[0]) / mean.sigma
    # Shrinkage by T / (T + v) with T = 1, v = 1 / 40 leaves an error of v T / (T + v) a voxel.
    assert (found - field[0]).square().mean() == pytest.approx(1 / 41, rel=0.2)
    assert float(moved.kept.mean()) == pytest.approx(40 / 41, abs=0.01)


def test_a_slope_moves_only_where_the_scans_say_so():
    mean = parent()
    z0, c = scans(mean, 30, shift=0.3, slope=0.4)
    moved = adapt_mean(mean, z0, c)
    assert moved.slopes == (0,)
    found = (moved.mean.coefficients[1] - mean.coefficients[1]) / mean.sigma
    assert float(found.mean()) == pytest.approx(0.4, abs=0.05)
    new, their = scans(mean, 400, shift=0.3, slope=0.4, seed=9)
    assert missed(moved.mean, new, their) < 1e-3
    assert missed(mean, new, their) > 0.1


def test_slopes_are_seldom_moved_without_reason():
    mean = parent()
    false = [adapt_mean(mean, *scans(mean, 20, seed=s), seed=s).slopes for s in range(40)]
    # Two inputs, each at 1 %: more than three of 40 would be 1 % likely.
    assert sum(bool(f) for f in false) <= 3


def test_the_spread_follows_few_scans_a_little_and_many_more():
    mean = parent()
    ratios = [
        float((adapt_mean(mean, *scans(mean, n, spread=2.0)).mean.sigma / mean.sigma).mean())
        for n in (4, 40)
    ]
    # (5 + (n - 1) 4) / (5 + n - 1), square root.
    assert ratios[0] == pytest.approx((17 / 8) ** 0.5, rel=0.05)
    assert ratios[1] == pytest.approx((161 / 44) ** 0.5, rel=0.05)


@pytest.mark.parametrize("told", [True, False])
def test_channels_of_one_sigma_keep_their_own_spreads(told):
    """Where all channels have one sigma some stray more by nature."""
    mean, scale = parent(), torch.tensor([1.5, 0.6, 0.622]).reshape(3, 1, 1, 1)
    spread = scale.expand(SHAPE) if told else None
    mean = replace(mean, sigma=torch.full((3, 1, 1, 1), 0.5), spread=spread)
    generator = torch.Generator().manual_seed(2)
    noise = 1.3 * scale * torch.randn(40, *SHAPE, generator=generator)
    c = torch.zeros(40, 2)
    ratio = adapt_mean(mean, mean.mean(c) + mean.sigma * noise, c).mean.sigma / mean.sigma
    # (5 + 39 x 1.69) / 44, square root.
    assert torch.allclose(ratio.flatten(), torch.full((3,), (70.9 / 44) ** 0.5), rtol=0.05)


def test_the_shift_is_the_new_conditions_and_without_it_the_parent_is_left():
    mean = parent()
    z0, c = scans(mean, 12, shift=0.8)
    site = torch.ones(12, 1)
    moved = adapt_mean(mean, z0, torch.cat([c, site], 1), new=1, indicators=1)
    null = torch.cat([c, torch.zeros(12, 1)], 1)
    assert torch.allclose(moved.mean.mean(null), mean.mean(c), atol=1e-5)
    assert torch.equal(moved.mean.sigma, mean.sigma)
    plain = adapt_mean(mean, z0, c)
    said = torch.cat([c, site], 1)
    assert torch.allclose(moved.mean.mean(said), plain.mean.mean(c), atol=1e-3)


def test_two_sites_have_a_shift_each():
    mean = parent()
    shift = torch.where(torch.arange(24) % 2 == 0, 0.8, -0.6).reshape(-1, 1, 1, 1, 1)
    z0, c = scans(mean, 24, shift)
    sites = torch.eye(2)[torch.arange(24) % 2]
    moved = adapt_mean(mean, z0, torch.cat([c, sites], 1), new=2, indicators=2)
    beyond = moved.mean.coefficients[3:5] / mean.sigma
    assert beyond.mean((1, 2, 3, 4)).tolist() == pytest.approx([0.8, -0.6], abs=0.05)


def test_shrinkage_is_that_of_normal_means():
    """Of many means with T = 4 and v = 1 it keeps 0.8."""
    generator = torch.Generator().manual_seed(3)
    x = (5**0.5) * torch.randn(1, 100000, generator=generator)
    kept = shrunk(x, torch.ones_like(x), dim=1)[1]
    assert float(kept.mean()) == pytest.approx(0.8, abs=0.01)
    assert not shrunk(torch.full((1, 5), 0.1), torch.ones(1, 5), dim=1)[0].any()


# --- the law of volumes ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def law():
    return load_scm(read_bundle(DEFAULT_BUNDLE))


def people(law, n, seed=0):
    rng = np.random.default_rng(seed)
    noise = {}
    for node in law.graph.nodes:
        size = (n, len(node.levels)) if node.kind == "discrete" else n
        noise[node.name] = rng.gumbel(size=size) if node.kind == "discrete" else rng.normal(size=n)
    return law.predict(noise, {"age": rng.uniform(25, 80, n)})


def test_a_law_finds_a_shift_of_all_volumes_and_stays_without_one(law):
    volumes = [node.name for node in law.graph.nodes if node.kind == "volume"]
    plain = people(law, 12)
    _, by = adapt_scm(law, plain)
    assert np.square(list(by.values())).mean() < 0.03
    sizes = {name: law.mechanisms[name].base.sigma for name in volumes}
    shifted = {k: v * np.exp(0.8 * sizes[k]) if k in sizes else v for k, v in plain.items()}
    moved, by = adapt_scm(law, shifted)
    # Head size acts on the regions: what it explains is not a shift of theirs.
    assert by.keys() == set(volumes)
    new = people(law, 400, seed=7)
    new = {k: v * np.exp(0.8 * sizes[k]) if k in sizes else v for k, v in new.items()}
    before, after = (
        np.mean([s.mechanisms[v].log_density(new[v], s.acting(new)).mean() for v in volumes])
        for s in (law, moved)
    )
    assert after > before + 0.03
    for member in moved.members:
        assert member.keys() == law.members[0].keys()


def test_a_moved_law_is_undone_as_any_other(law):
    moved, _ = adapt_scm(law, people(law, 10))
    new = people(law, 5, seed=3)
    back = moved.counterfactual(new, {"age": new["age"]})
    for name, values in new.items():
        if values.dtype.kind == "f":
            assert np.allclose(back[name], values, rtol=1e-9)


def test_the_command_moves_a_law(cfgen, law, tmp_path):
    import csv

    columns = people(law, 20)
    table = tmp_path / "few.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["subject", "split", *columns])
        for n in range(20):
            split = "train" if n < 10 else "val"
            writer.writerow([f"p{n}", split, *(columns[name][n] for name in columns)])
    asked = ("fit-scm", "--table", table, "--init", DEFAULT_BUNDLE, "--out", tmp_path / "ours")
    code, out, said = cfgen(*asked, "--dry-run")
    assert code == 0, said
    assert out.strip() == "10 people"
    code, out, said = cfgen(*asked)
    assert code == 0, said
    assert "log density of a volume of split val" in out
    bundle, source = read_bundle(tmp_path / "ours"), read_bundle(DEFAULT_BUNDLE)
    changed = {n for n, p in bundle.parts.items() if p.sha256 != source.parts[n].sha256}
    assert changed == {"scm"}
    code, _, said = cfgen(*asked, "--overwrite", "--prior", "none")
    assert code == 2
    assert "--init: --prior beside it" in said
    table.write_text("\n".join(table.read_text().splitlines()[:3]) + "\n")
    code, _, said = cfgen(*asked, "--overwrite")
    assert code == 2
    assert "2 people to learn from; expected at least 3" in said
