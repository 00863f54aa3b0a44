"""Objects on their way through the places of a batch, and their data side by side: without a sampler, exactly."""

from types import SimpleNamespace

import jax
import numpy as np
import numpyro
import pytest
from numpyro import distributions as dist
from numpyro.infer.util import log_density
from scipy import stats

from hbm_jax.inference.batch import chees, fit_each, interleaving
from hbm_jax.inference.batch.diagnostics import unresolved
from hbm_jax.inference.batch.slots import BLOCK, Slots
from hbm_jax.inference.batch.stacking import masked, stack

RNG = np.random.default_rng(12)


class Places:
    """`Slots` without a sampler: the k-th draw of object i is 1e4 i + k, in every chain; at most 40 a call."""

    def __init__(self, num_slots, num_warmup, diverging=None, impossible=(), num_chains=4):
        self.num_slots, self.num_chains = num_slots, num_chains
        self.target = SimpleNamespace(labels=("x",), observed=True)
        self.options = chees.Options(num_warmup, 0.8, 256)
        self.object, self.filled = np.full(num_slots, -1), []
        self.age = np.zeros(num_slots, int)
        self.diverging, self.impossible = diverging or {}, impossible
        self.shortened = []

    def fill(self, places, objects, keys):
        self.object[places], self.age[places] = objects, 0
        self.filled += list(objects)

    def shorten(self, places):
        self.shortened += [int(self.object[place]) for place in places]

    def without_padding(self, name, values, number, first):
        return values

    def advance(self, num_draws):
        draws, steps = [], np.zeros(self.num_slots, int)
        for slot, number in enumerate(self.object):
            num = min(num_draws[slot], 40)
            k = self.age[slot] + np.arange(num)
            self.age[slot] += num
            x = np.tile(1e4 * number + k[:, None], (1, self.num_chains))
            diverging = np.zeros(x.shape, bool)
            diverging[:, 1] = np.isin(k, self.diverging.get(number, ()))
            potential = 0.5 * x**2
            if number in self.impossible:
                potential[:, 0] = np.inf
            energy = potential + RNG.normal(size=x.shape)
            each = np.full(x.shape, 1 + max(number, 0))
            draws.append(chees.Draw(x[..., None], potential, energy, 0.9 + 0 * x, diverging, each))
            steps[slot] = num * (1 + number)
        return draws, steps, np.full(self.num_slots, steps.max())

    def sites(self, rows, positions):
        assert positions.shape[:2] == (len(rows), BLOCK)
        return {"x": positions[..., 0], "y": -positions[..., 0]}

    def drain(self, num_objects, **options):
        bounds = options.pop("bounds", {})
        chosen = fit_each.BatchOptions(**({"keep_draws": True} | options))
        self.queue = fit_each._Queue(self, range(num_objects), chosen, bounds)
        done = []
        while len(done) < num_objects:
            done += self.queue.advance()
        return {d.number: d for d in done}


def test_objects_take_turns_and_the_draws_after_the_warmup_are_kept():
    places = Places(2, num_warmup=75)
    done = places.drain(5, num_samples=120, keep_draws=["x", "lp"])
    assert places.filled == list(range(5))
    assert sorted(done) == list(range(5))
    for i, d in done.items():
        assert set(d.draws) == {"x", "lp"}
        expected = np.tile(1e4 * i + 75 + np.arange(150), (4, 1))
        np.testing.assert_array_equal(d.draws["x"], expected)
        np.testing.assert_array_equal(d.draws["lp"], -0.5 * expected**2)
        assert (d.num_draws, d.num_steps, d.num_divergences) == (600, 1 + i, 0)
        found = [expected.mean(), expected.std(ddof=1), *np.quantile(expected, [0.16, 0.5, 0.84])]
        np.testing.assert_allclose(d.sites["x"][[3, 4, 0, 1, 2]], found)
        np.testing.assert_allclose(d.sites["y"][[3, 4, 2, 1, 0]], np.array([-1, 1, -1, -1, -1]) * found)
    # The five objects take 1 to 5 steps a draw, 225 draws each; 1 waits for 2, 3 for 4, and the last is alone.
    assert places.queue.steps == 225 * (1 + 2 + 3 + 4 + 5)
    assert places.queue.waited == 225 * (2 * 2 + 2 * 4 + 5)


def test_draws_begin_anew_where_some_diverge_four_times_at_most():
    places = Places(3, num_warmup=50, diverging={0: (10,), 1: (70, 110), 2: range(10_000)}, impossible=(3,))
    done = places.drain(4, num_samples=100)
    # In the warm-up a divergence does not matter.
    assert np.unique(places.shortened, return_counts=True)[0].tolist() == [1, 2]
    assert places.shortened.count(1) == 2
    assert places.shortened.count(2) == 4
    # The first draw after a restart is still made with the former steps, and is left out. Calls end after 40 draws,
    # or where the draws of the warm-up and of the next check are complete.
    first = [done[i].draws["x"][0, 0] % 1e4 for i in range(3)]
    assert first == [50, 121, 201]
    assert [done[i].num_divergences for i in range(4)] == [0, 0, 100, 0]
    assert done[3].why == "no starting point with a finite density was found"
    assert done[3].draws is None


def test_an_object_is_drawn_until_it_is_usable_or_the_budget_is_spent(monkeypatch):
    lengths, sizes = [], []

    def why(sites, divergences, bfmi, until):
        assert until == 333.0
        lengths.append(round(2 * (sites["x"][3] - BLOCK) + 1))  # from the mean of consecutive numbers
        return "" if sizes[len(lengths) - 1] >= 333.0 else "effective sample size too small"

    monkeypatch.setattr(fit_each, "_reasons", why)
    monkeypatch.setattr(fit_each, "_smallest_ess", lambda sites: sizes[len(lengths) - 1])
    sizes[:] = [250.0, 90.0, 340.0, 370.0]  # done at 10 % more than 333
    done = Places(1, num_warmup=50).drain(1, until=333.0)
    # 1.1 times what is missing, at most twice as many, in whole blocks; 800 draws of all chains at first.
    assert lengths == [200, 350, 700, 850]
    assert done[0].num_draws == 4 * 850
    lengths.clear()
    sizes[:] = [300.0, 340.0]  # enough where the budget ends
    done = Places(1, num_warmup=50).drain(1, until=333.0, max_num_samples=280)
    assert lengths == [200, 300]
    assert (done[0].why, done[0].num_draws) == ("", 4 * 300)
    # Divergences are not mended by more draws.
    lengths.clear()
    done = Places(1, num_warmup=50, diverging={0: range(100, 10_000)}).drain(1, until=333.0)
    assert len(lengths) == 1
    assert done[0].num_draws == 4 * 200
    assert done[0].num_divergences == 200


def test_why_a_posterior_is_not_usable_is_said():
    good = np.array([0.1, 0.2, 0.3, 0.2, 0.1, 1.0, 400.0, 400.0])

    def why(changes=(), divergences=0, bfmi=1.0, until=400.0):
        values = good.copy()
        for place, value in changes:
            values[place] = value
        return fit_each._reasons({"x": np.stack([good, values])}, divergences, bfmi, until)

    assert why() == ""
    assert why([(3, np.nan)]) == "draws that are not finite"
    assert why([(5, 1.012)]) == "R-hat 1.012"
    assert why([(5, 1.012), (6, 300.0)], until=200.0) == ""  # fewer draws are judged by a wider bound
    assert why([(5, 1.021)], until=200.0) == "R-hat 1.021"
    assert why([(5, 1.012)], until=800.0) == "R-hat 1.012, effective sample size 400"
    assert why([(6, 399.0)]) == why([(7, 399.0)]) == "effective sample size 399"
    assert why(divergences=3) == "3 divergences"
    assert why(bfmi=0.2) == "E-BFMI 0.20"
    assert why([(5, np.nan), (6, np.nan), (7, np.nan)]) == ""  # what does not vary


def test_sampled_parameters_that_do_not_move_are_not_usable():
    """Lane by lane, whether shown or not; what is not sampled may be fixed."""
    draws = np.random.default_rng(3).normal(size=(4, 500, 4, 2))  # (lane, draw, chain, size)
    draws[1, ..., 0] = 7.0
    draws[2, ..., 1] = 0.0
    sites = {"t0": draws[..., 0].copy(), "fixed": np.full((4, 500, 4), 70.0)}
    sites["t0"][3] = (2459000.0 + 0.3 * sites["t0"][3]).astype(np.float32)
    found = unresolved(draws, sites, np.array(["t0", "_noise"]))
    assert found == ["", "t0 never moved", "_noise never moved", ""]
    sites["t0"] = sites["t0"].astype(np.float32)
    assert unresolved(draws, sites, np.array(["t0", "_noise"]))[3] == "t0 moved in coarse steps"


def test_places_suit_memory_device_and_objects():
    def places(operations, wanted=None, max_bytes=1e9, num=1000):
        target = SimpleNamespace(constrain=lambda flat: {"x": flat, "sum": flat.sum()}, start=np.zeros(3), size=3)
        slots = SimpleNamespace(target=target, max_bytes=max_bytes, num_chains=4, requested=wanted, stack=range(num))
        return Slots._choose_num_slots(slots, operations)

    # 2 copies of the records and the momenta of a call, of 3 parameters and 6 numbers; 2 of the 4 numbers of the sites.
    a_place = 8 * 4 * ((2 * interleaving.RECORDS + interleaving.MAX_DRAWS) * (3 + 6) + 2 * BLOCK * 4)
    assert places(1.0) == 2 * 64
    assert places(1e6 / 32) == 2 * 32
    assert places(1e9) == 2 * 8
    assert places(1.0, max_bytes=20.5 * a_place) == 20
    assert places(1.0, max_bytes=21.5 * a_place) == 22  # shared equally by two devices
    assert places(1.0, max_bytes=1.0) == 1
    assert places(1.0, wanted=5) == 6
    assert places(1.0, wanted=5, num=3) == 4
    assert places(1.0, num=1) == 1


def test_padded_lengths_are_unlike_any_other():
    objects = [(np.arange(n) + 1.0, np.arange(4.0 * n).reshape(4, n), np.ones(4)) for n in (2, 4, 3)]
    whole = stack(objects)
    assert whole.padded == (5,)
    assert [leaf.shape for leaf in jax.tree.leaves(whole.first)] == [(5,), (4, 5), (4,)]
    np.testing.assert_array_equal(whole.lengths[:, 0], [2, 4, 3])
    assert whole.varying == (0, 1)
    np.testing.assert_array_equal(whole.leaves[0], [[1, 2, 2, 2, 2], [1, 2, 3, 4, 4], [1, 2, 3, 3, 3]])
    part = whole.take(np.array([2, 0]))
    assert len(part) == 2
    for row, number in enumerate((2, 0)):
        for found, expected in zip(part.without_padding(row), objects[number], strict=True):
            np.testing.assert_array_equal(found, expected)


def test_padding_of_every_axis_is_masked():
    def table(y, offset):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("row", y.shape[0], dim=-2), numpyro.plate("column", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(mu + offset[:, None], 2.0), obs=y)

    random = np.random.default_rng(1)
    objects = [(random.normal(size=(n, m)), random.normal(size=n)) for n, m in ((2, 3), (4, 1), (3, 6))]
    whole = stack(objects)

    @jax.jit
    def density(leaves, lengths):
        return log_density(masked(table, whole.padded, lengths), whole.args(leaves), {}, {"mu": 0.3})[0]

    for row, (y, offset) in enumerate(objects):
        expected = stats.norm.logpdf(0.3) + stats.norm.logpdf(y, 0.3 + offset[:, None], 2.0).sum()
        found = density([leaf[row] for leaf in whole.leaves], whole.lengths[row])
        assert float(found) == pytest.approx(expected, rel=1e-12)
