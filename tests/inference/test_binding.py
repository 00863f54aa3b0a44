"""A program meets its data once: everything in inference binds them, and traces the program with the result."""

import functools
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro import distributions as dist

import hbm_jax as hbm
from hbm_jax.inference import program as asked
from hbm_jax.inference.batch.stacking import bound_stack, stack
from hbm_jax.inference.centering.location_scale import PartialNonCentring
from hbm_jax.inference.criticism.replicates import Replicates
from hbm_jax.models.base import PopulationModel

SHORT = {"num_chains": 2, "num_warmup": 60, "num_samples": 60, "sampler": hbm.HMC(trajectory_length=1.5)}
SHORT |= {"progress": False, "seed": 3}
CALLS = {}  # data sets that a model has bound; not in the model, whose fingerprint would change
BATCH = {"num_chains": 2, "num_warmup": 50, "num_samples": 50, "progress": False, "keep_draws": True}


@functools.partial(jax.tree_util.register_dataclass, data_fields=["y", "error"], meta_fields=[])
@dataclass(frozen=True)
class Measurements:
    """A container, of values with their errors."""

    y: np.ndarray
    error: np.ndarray
    warnings: ClassVar[tuple[str, ...]] = ("one of them is odd",)

    def to_dict(self):
        return {"y": self.y, "error": self.error}

    def describe(self):
        return f"{len(self.y)} measurements"

    def subset(self, rows):
        return Measurements(self.y[rows], self.error[rows])

    def __len__(self):
        return len(self.y)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["y", "variance"], meta_fields=["exact"])
@dataclass(frozen=True)
class BoundMeasurements:
    y: np.ndarray
    variance: np.ndarray
    exact: bool = False


def density(y, variance, observed=True, recover=False):
    mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
    scatter = numpyro.sample("scatter", dist.HalfNormal(5.0))
    with numpyro.plate("object", len(variance)):
        total = jnp.sqrt(variance + scatter**2)
        drawn = numpyro.sample("y", dist.Normal(mean, total), obs=y if observed else None)
        if recover:
            numpyro.deterministic("theta", mean + (drawn - mean) * scatter**2 / total**2)


@dataclass(frozen=True)
class Bound(PopulationModel):
    """A model that binds its data, and counts how often."""

    Bound: ClassVar[type] = BoundMeasurements

    @property
    def calls(self):
        return CALLS.setdefault(id(self), (self, []))[1]  # with the model, so that its id is not given again

    @property
    def default_priors(self):
        return {"mean": dist.Normal(0.0, 10.0), "scatter": dist.HalfNormal(5.0)}

    @property
    def dims(self):
        return {"y": ["object"], "theta": ["object"]}

    def coords(self, data):
        assert isinstance(data, Measurements)
        return {"object": [f"number {i}" for i in range(len(data))]}

    @property
    def units(self):
        return {"mean": "mag"}

    def cautions(self, data, bound=None):
        assert isinstance(data, Measurements)
        assert isinstance(bound, BoundMeasurements)
        return ("a caution",)

    def to_config(self):
        return {"priors": {}}

    def bind(self, data):
        assert isinstance(data.y, np.ndarray), "concrete data"
        assert jax.config.jax_enable_x64
        self.calls.append(data)
        return BoundMeasurements(data.y, np.square(data.error))

    def program(self, bound, observed, recover):
        density(bound.y, bound.variance, observed, recover)


def plain(data, observed=True, recover=False):
    """The same program, without anything to ask for."""
    density(data.y, data.error**2, observed, recover)


def measurements(num=12, number=1):
    rng = np.random.default_rng(number)
    error = rng.uniform(0.5, 1.5, num)
    return Measurements(3.0 + rng.normal(size=num) * np.hypot(error, 2.0), error)


@pytest.fixture(scope="module")
def fits():
    model, data = Bound(), measurements()
    return hbm.sample(model, data, **SHORT), hbm.sample(plain, data, **SHORT)


def assert_same(left, right, **tolerances):
    assert set(left) == set(right)
    for name in left:
        np.testing.assert_allclose(left[name].to_numpy(), right[name].to_numpy(), **{"rtol": 1e-9} | tolerances)


def test_everything_about_a_fit_binds_its_data_once(fits):
    bound, other = fits
    calls = bound.program.calls
    assert len(calls) == 1
    assert calls[0] is bound.data
    assert_same(bound.posterior, other.posterior)
    for check in (hbm.posterior_predictive, hbm.latents):
        assert_same(check(bound, num_draws=20), check(other, num_draws=20))
    assert_same(hbm.inference.log_likelihood(bound), hbm.inference.log_likelihood(other))
    assert hbm.loo(bound).elpd == pytest.approx(hbm.loo(other).elpd)
    hbm.prior_sensitivity(bound)
    assert len(calls) == 1


def test_labels_and_notes_are_those_of_the_container(fits):
    bound, _ = fits
    assert list(hbm.posterior_predictive(bound, num_draws=4)["object"].to_numpy())[:2] == ["number 0", "number 1"]
    assert bound.units == {"mean": "mag"}
    assert bound.run["data"] == "12 measurements"
    assert bound.verdict.notes[:2] == ("a caution", "in the data, one of them is odd")
    np.testing.assert_array_equal(bound.tree["constant_data"]["error"], bound.data.error)


@pytest.mark.long
def test_a_resumed_run_and_a_loaded_fit_bind_their_data(tmp_path, fits):
    model, data = Bound(), fits[0].data
    fit = hbm.sample(model, data, checkpoint=tmp_path / "run", **SHORT)
    again = hbm.resume(tmp_path / "run", model, data, progress=False)
    assert len(model.calls) == 2
    assert_same(again.posterior, fits[0].posterior, rtol=0)
    loaded = hbm.inference.load(fit.save(tmp_path / "fit.nc"), model, (data,))
    assert len(model.calls) == 2
    assert_same(hbm.latents(loaded, num_draws=5), hbm.latents(fit, num_draws=5), rtol=0)
    assert len(model.calls) == 3
    loaded.attach(model, (measurements(number=2),))
    assert loaded.bound_args[0].y[0] == loaded.data.y[0] != data.y[0]


def test_bound_data_may_be_given():
    model, data = Bound(), measurements()
    bound = model.bind(data)
    assert asked.bound_args(model, (bound,)) == (bound,)
    drawn = hbm.prior_predictive(plain, data, num_draws=3)
    np.testing.assert_allclose(
        hbm.prior_predictive(model, data, num_draws=3)["y"].to_numpy(), drawn["y"].to_numpy(), rtol=1e-12
    )
    assert len(model.calls) == 2


@pytest.mark.long
def test_the_pilot_and_the_run_share_the_bound_data():
    class Hierarchical:
        calls = 0

        def bind(self, y):
            type(self).calls += 1
            return {"y": np.asarray(y)}

        def __call__(self, bound):
            mean = numpyro.sample("mean", dist.Normal(0.0, 5.0))
            with numpyro.plate("group", len(bound["y"])):
                theta = numpyro.sample("theta", dist.Normal(mean, 2.0))
                numpyro.sample("y", dist.Normal(theta, np.array([0.1, 2.0, 40.0])), obs=bound["y"])

    program = Hierarchical()
    fit = hbm.sample(program, np.zeros(3), centering=True, **SHORT)
    assert Hierarchical.calls == 1
    assert "centering" in fit.tree
    table = hbm.centre(program, np.zeros(3)).table
    assert table["weight"].round(2).tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("sizes", [(8, 8, 8), (8, 6, 7)])
def test_each_object_of_a_batch_is_bound_before_it_is_stacked(sizes):
    model, data = Bound(), [measurements(size, number) for number, size in enumerate(sizes)]
    stacked = bound_stack(model, data)
    assert isinstance(stacked.first[0], BoundMeasurements)
    assert stacked.padded == stack(data).padded
    for row, single in enumerate(data):
        (bound,) = stacked.without_padding(row)
        np.testing.assert_array_equal(bound.variance, single.error**2)
        np.testing.assert_array_equal(bound.y, single.y)
    taken = stacked.take(np.array([2, 0]))
    np.testing.assert_array_equal(taken.without_padding(0)[0].y, data[2].y)


@pytest.mark.long
def test_a_batch_of_ragged_data_that_are_bound():
    data = [measurements(size, number) for number, size in enumerate((8, 6, 7))]
    fits, others = (hbm.fit_each(program, data, **BATCH) for program in (Bound(), plain))
    for index in range(3):
        for name in ("mean", "scatter"):
            np.testing.assert_allclose(fits.kept[index][name], others.kept[index][name], rtol=1e-6)
    assert all(notes.startswith("a caution; in the data, one of them is odd") for notes in fits.verdicts["notes"])


def test_bound_data_of_different_structure_are_refused_unless_they_are_bound_together():
    class Distinguishing(Bound):
        def bind(self, data):
            return BoundMeasurements(data.y, data.error**2, exact=bool(data.error.min() < 0.6))

    class Together(Distinguishing):
        def bind_each(self, data):
            return [BoundMeasurements(single.y, single.error**2) for single in data]

    data = [Measurements(np.ones(3), np.full(3, error)) for error in (0.5, 0.7)]
    with pytest.raises(ValueError, match="bound data of one structure for all objects; found that object 1 and the"):
        hbm.fit_each(Distinguishing(), data, **BATCH)
    assert not bound_stack(Together(), data).first[0].exact


@pytest.mark.long
def test_groups_are_left_out_of_bound_data():
    model, data = Bound(), measurements(9)
    groups = np.repeat(["a", "b", "c"], 3)
    fits, others = (hbm.leave_groups_out(program, data, groups, site="y", **BATCH) for program in (model, plain))
    assert len(model.calls) == 1
    for index in fits.kept:
        np.testing.assert_allclose(fits.kept[index]["mean"], others.kept[index]["mean"], rtol=1e-6)


class Observing(Bound):
    """A model that is bound anew for every simulated data set."""

    def observing(self, values, bound):
        assert isinstance(bound, BoundMeasurements)
        return BoundMeasurements(np.asarray(values["y"]), bound.variance)


def test_replicates_of_bound_data_are_those_of_the_program():
    data = measurements(4)
    model, observing = Bound(), Observing()
    expected = Replicates.of(plain, (data,), plain).simulate(20, 1)
    for program in (model, observing):
        design = Replicates.of(program, (data,), program)
        truths, values, densities = design.simulate(20, 1)
        assert len(program.calls) == 1
        np.testing.assert_allclose(truths["mean"], expected[0]["mean"], rtol=1e-12)
        np.testing.assert_allclose(values["y"], expected[1]["y"], rtol=1e-12)
        _, objects = design.fit_tasks(values)
        assert len(objects) == 20
        assert len(program.calls) == 1
    log_density = Replicates.of(model, (data,), model).simulate(20, 1)[2]
    np.testing.assert_allclose(log_density, expected[2], rtol=1e-12)
    np.testing.assert_array_equal(objects[3][0].y, values["y"][3])
    # Log likelihood of the drawn values at the true parameters, by hand.
    width = np.sqrt(data.error**2 + truths["scatter"][:, None] ** 2)
    by_hand = np.sum(-0.5 * ((values["y"] - truths["mean"][:, None]) / width) ** 2 - np.log(width), axis=1)
    np.testing.assert_allclose(densities, by_hand - 2.0 * np.log(2.0 * np.pi), rtol=1e-9)


@pytest.mark.long
def test_calibration_of_bound_data():
    options = {"num_replicates": 20, "num_chains": 2, "num_warmup": 50, "max_num_samples": 50, "progress": False}
    model = Observing()
    ranks = hbm.calibrate(model, measurements(4), **options).ranks
    assert len(model.calls) == 1
    other = hbm.calibrate(plain, measurements(4), **options).ranks
    np.testing.assert_array_equal(ranks[["mean", "scatter"]], other[["mean", "scatter"]])


def test_the_maximum_of_the_likelihood_of_bound_data():
    model, data = Bound(), measurements()
    best, other = (hbm.maximum_likelihood(program, data, num_starts=2) for program in (model, plain))
    assert len(model.calls) == 1
    np.testing.assert_allclose(best.table["value"], other.table["value"], rtol=1e-8)


def test_a_program_without_bind_gets_its_arguments():
    data = (measurements(), 3)
    assert asked.bound_args(plain, data) is data


def test_a_program_needs_nothing_but_its_call():
    def nothing(y):
        pass

    assert asked.dims_of(nothing) == asked.units_of(nothing) == asked.supports_of(nothing) == {}
    assert asked.coords_of(nothing, ()) == asked.arrays_of_reparametrisations(nothing) == {}
    assert asked.cautions_of(nothing, (), ()) == asked.integrated_in(nothing) == ()
    assert asked.config_of(nothing) is asked.num_data_of(nothing, ()) is asked.observing_of(nothing) is None
    assert asked.name_of(functools.partial(nothing, 3)) == asked.name_of(nothing) == asked.description_of(nothing)
    assert asked.target_accept_prob_of(nothing) == 0.8
    assert asked.chooses_centering(nothing) is asked.recovers(nothing) is False
    assert not isinstance(nothing, asked.Program)


def test_reparametrisations_under_their_former_name_are_stored_with_a_warning():
    class Program:
        forms = (PartialNonCentring("x", np.array([0.25]), np.array([2.0])),)

        def __call__(self):
            pass

    with pytest.warns(DeprecationWarning, match="now called reparametrisations"):
        arrays = asked.arrays_of_reparametrisations(Program())
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "form:x:centredness": [0.25],
        "form:x:reference": [2.0],
    }


def test_one_protocol_names_all_that_is_asked():
    class Complete(Observing):
        integrated = reparametrisations = remedies = blinded = ()
        further_starts = None

        def num_data(self, data):
            return len(data)

        def bind_each(self, data):
            return [self.bind(single) for single in data]

        def bind_alike(self, data):
            return self.bind_each(data)

        def cautions_of_draws(self, data, posterior):
            return []

    assert isinstance(Complete(), asked.Program)
    assert not isinstance(Bound(), asked.Program)
