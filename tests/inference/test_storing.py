"""Draws are never lost at the end: what cannot be stored is converted or refused before sampling, or given back."""

import re

import jax.numpy as jnp
import numpy as np
import numpyro
import pandas as pd
import pytest
from numpyro import distributions as dist
from numpyro.handlers import scope
from programs import tiny

import hbm_jax as hbm
from hbm_jax.inference import CheckpointError, ResultsError
from hbm_jax.inference import run as run_module
from hbm_jax.inference.storage import arrays_of

SHORT = {
    "num_chains": 1,
    "num_warmup": 10,
    "num_samples": 20,
    "sampler": hbm.HMC(trajectory_length=1.5),
    "progress": False,
}
TABLE = pd.DataFrame({"y": [0.1, 0.4, -0.3], "band": ["g", "r", "g"]}, index=[10, 11, 12])


def of_a_table(table, divider="."):
    """A mean within a scope, and an offset of each row."""
    with scope(prefix="galaxy", divider=divider):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", len(table)):
            offset = numpyro.sample("offset", dist.Normal(0.0, 0.1))
    numpyro.sample("y", dist.Normal(mu + offset, 0.1).to_event(1), obs=jnp.asarray(table["y"].to_numpy()))


of_a_table.units = {"galaxy.mu": np.dtype(float)}  # stands for a unit that is an object


@pytest.mark.long
def test_scopes_tables_dates_and_numbers_of_numpy_are_stored(tmp_path):
    options = SHORT | {"seed": np.int64(3), "num_chains": np.int64(1), "num_samples": np.int32(20), "num_warmup": 10.0}
    options |= {
        "dtype": np.float64,
        "max_num_samples": jnp.asarray(50),
        "sampler": hbm.HMC(trajectory_length=np.float32(1.5)),
    }
    days = pd.date_range("2024-01-30", periods=3)
    fit = hbm.sample(of_a_table, TABLE, checkpoint=tmp_path / "run", coords={"galaxy.row": days}, **options)
    back = hbm.load(fit.save(tmp_path / "fit.nc"))
    assert back.posterior["galaxy.offset"].dims == ("chain", "draw", "galaxy.row")
    assert [label[:10] for label in back.posterior["galaxy.row"].values.tolist()] == [
        "2024-01-30",
        "2024-01-31",
        "2024-02-01",
    ]
    assert back.units == {"galaxy.mu": "float64"}
    assert back.run["seed"] == 3
    assert type(fit.run["num_chains"]) is int
    stored = back.tree["constant_data"]
    np.testing.assert_array_equal(stored["y"], TABLE["y"])
    assert stored["band"].values.tolist() == ["g", "r", "g"]
    assert stored["index"].values.tolist() == [10, 11, 12]
    other = TABLE.assign(band=["g", "r", "r"])
    with pytest.raises(CheckpointError, match=r"found that the data args\[0\]\.band differs\.$"):
        hbm.resume(tmp_path / "run", of_a_table, other, progress=False)


def of_a_pair():
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.deterministic("pair", (x, 2.0 * x))


class DescribedBadly:
    """Data whose description fails."""

    def describe(self):
        raise OSError("no description")


def of_anything(data):
    numpyro.sample("x", dist.Normal(0.0, 1.0))


def in_a_plate():
    with numpyro.plate("star", 3):
        numpyro.sample("x", dist.Normal(0.0, 1.0))


def in_schools(y):
    mu, tau = numpyro.sample("mu", dist.Normal(0.0, 1.0)), numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("school", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


@pytest.mark.parametrize(
    ("program", "args", "options", "message"),
    [
        (of_a_table, (TABLE, "/"), {}, r"a site called 'galaxy/mu': expected a name without '/'.*pass divider='\.'"),
        (
            in_a_plate,
            (),
            {"dims": {"x": ["x"]}},
            "a site and a plate or dimension are both called 'x': expected two names",
        ),
        (
            in_a_plate,
            (),
            {"coords": {"star": ["A", "B"]}},
            "draws can be stored; found: .*expected 3 labels",
        ),
        (in_a_plate, (), {"coords": {"star": "ABC"}}, r"expected coords\['star'\] to be a list; found 'ABC'"),
        (in_a_plate, (), {"dims": {"x": ["star", "planet"]}}, "expected a program whose draws can be stored; found: "),
        (of_a_pair, (), {}, "expected site 'pair' to be an array; found a tuple"),
        (of_anything, (DescribedBadly(),), {}, "no description"),
        (in_a_plate, (), {"seed": 1.5}, "expected seed to be a whole number; found 1.5"),
        (in_a_plate, (), {"seed": 2**70}, "expected a seed of at most 64 bits; found 1180591620717411303424"),
        (in_a_plate, (), {"max_num_samples": "many"}, "expected max_num_samples to be a whole number; found 'many'"),
        (in_a_plate, (), {"max_seconds": "long"}, "expected max_seconds to be a number; found 'long'"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_sampling(program, args, options, message, monkeypatch):
    monkeypatch.setattr(run_module, "choose_start", None)
    with pytest.raises((ValueError, OSError), match=message):
        hbm.sample(program, *args, **(SHORT | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coords": {"school": ["A", "B"]}}, "draws can be stored; found: .*expected 3 labels"),
        ({"num_samples": None, "until": {"sigma": 100}}, "until names 'sigma'; expected one of mu, "),
    ],
)
def test_it_is_refused_before_the_pilot_of_the_centering(options, message, monkeypatch):
    monkeypatch.setattr(run_module, "choose_centering", None)
    with pytest.raises(ValueError, match=message):
        hbm.sample(in_schools, np.zeros(3), centering=True, **(SHORT | options))


@pytest.mark.parametrize(
    "data",
    [
        pd.DataFrame([[1, 2]], columns=["a", "a"]),
        pd.DataFrame({"flux/error": [1.0]}),
        pd.DataFrame({"when": pd.date_range("2024", periods=2)}),
        pd.Series([1.0, 2.0]),
        np.arange(3.0),
        None,
    ],
)
def test_data_of_other_kinds_are_left_out(data):
    assert arrays_of(data) is None


@pytest.mark.long
def test_an_error_after_the_draws_gives_them_back(monkeypatch, tmp_path):
    whole = hbm.sample(tiny, seed=5, **SHORT)

    def fail(*args, **options):
        raise TypeError("cannot be put together")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "assemble", fail)
        with pytest.raises(
            ResultsError, match=r"results of 20 draws per chain; found TypeError: cannot be put"
        ) as told:
            hbm.sample(tiny, seed=5, **SHORT)
        with pytest.raises(TypeError) as noted:
            hbm.sample(tiny, seed=5, checkpoint=tmp_path, **SHORT)
    np.testing.assert_array_equal(told.value.draws["position"], whole.tree["unconstrained_posterior"]["position"])
    np.testing.assert_array_equal(told.value.draws["lp"], whole.tree["sample_stats"]["lp"])
    assert told.value.labels == ("a", "b")
    assert re.search(rf'on disk; hbm_jax\.resume\("{tmp_path}"\) continues', noted.value.__notes__[0])
    np.testing.assert_array_equal(hbm.resume(tmp_path, tiny, progress=False).posterior["a"], whole.posterior["a"])
