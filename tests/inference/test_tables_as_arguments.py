"""Tables, arrays of FITS files and data with NaN as arguments: converted, or refused by name."""

import jax
import numpy as np
import numpyro
import pandas as pd
import pytest
import xarray as xr
from numpyro import distributions as dist

import hbm_jax as hbm
from hbm_jax.inference.arguments import plain_arguments, plain_objects
from hbm_jax.inference.sampler.target import StartError

X, Y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.5, 1.2, 2.0, 1.0])


def line(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0))
    with numpyro.plate("point", len(x)):
        numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def of_columns(table, y):
    line(table["x"], y)


def of_matrix(design, y):
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 2.0).expand([design.shape[1]]).to_event(1))
    with numpyro.plate("point", design.shape[0]):
        numpyro.sample("y", dist.Normal(design @ slopes, 1.0), obs=y)


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: pd.DataFrame({"x": x}),
        lambda x: xr.Dataset({"x": ("i", x)}, coords={"i": [7, 8, 9, 10]}),
        lambda x: np.rec.fromarrays([x.astype(">f8")], names="x"),
        lambda x: x.astype(">f8"),
        lambda x: x.astype(np.longdouble),
        lambda x: x.astype(object),
        lambda x: pd.array(x, dtype="Float64"),
        lambda x: pd.Categorical(x),
        lambda x: range(1, 5),
    ],
    ids=["DataFrame", "Dataset", "FITS-record", "FITS-byte-order", "long-double", "objects", "Float64", "Categorical",
         "range"],
)  # fmt: skip
def test_a_program_of_vectors_gets_a_vector(convert):
    found, _ = plain_arguments(line, (convert(X), Y))
    assert type(found) is np.ndarray
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, X)
    assert plain_arguments(line, (X, Y), None)[0].base is X


def test_a_column_of_observations_is_not_broadcast():
    """A density of shape (4, 4) from data of shapes (4,) and (4, 1) could be computed, too."""

    def without_plate(x, y):
        slope = numpyro.sample("slope", dist.Normal(0.0, 2.0))
        numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=jax.numpy.asarray(y))

    _, y = plain_arguments(without_plate, (X, pd.DataFrame({"y": Y})))
    assert y.shape == (4,)


def test_tables_of_astropy():
    table = pytest.importorskip("astropy.table")
    (found, _) = plain_arguments(of_columns, (table.Table({"x": X.astype(">f8")}), Y))
    np.testing.assert_array_equal(found["x"], X)
    units = pytest.importorskip("astropy.units")
    with pytest.raises(ValueError, match=r"table\['x'\]: expected plain numbers; found a Quantity in m"):
        plain_arguments(of_columns, (table.QTable({"x": X * units.m}), Y))


@pytest.mark.parametrize("columns", [["a"], ["a", "b"]])
def test_a_program_of_a_design_matrix_gets_a_matrix(columns):
    table = pd.DataFrame(dict.fromkeys(columns, X))
    np.testing.assert_array_equal(plain_arguments(of_matrix, (table, Y))[0], np.stack([X] * len(columns), axis=-1))


def test_a_dict_has_arrays():
    found, _ = plain_arguments(of_columns, ({"x": list(X)}, Y))
    np.testing.assert_array_equal(found["x"], X)
    with pytest.raises(ValueError, match=r"table\['x'\]: expected an array without masked values"):
        plain_arguments(of_columns, ({"x": np.ma.masked_greater(X, 3.0)}, Y))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (pd.DataFrame({"a": X, "b": X}), r"x: expected data that the program can use; found a DataFrame of a, b\."),
        (np.zeros(4, "f8,f8"), r"x: expected data that the program can use; found a ndarray of f0, f1\."),
        (pd.DataFrame({"a": X[:3]}), r"found a DataFrame of a\. .*x has 3, y has 4 rows"),
        (iter(X), r"x: expected numbers; found a .*, which the program cannot use"),
        (set(X), r"x: expected numbers; found a set"),
        ("data.csv", r"x: expected numbers; found a str"),
        ([1.0, None, 2.0, 3.0], r"x: expected numbers; found None in row 1"),
    ],
)
def test_data_that_cannot_be_used_are_refused_by_name(value, message):
    with pytest.raises(ValueError, match=message):
        plain_arguments(line, (value, Y))
    with pytest.raises(ValueError, match=message.replace("x: ", "object 0, x: ")):
        plain_objects(line, [(value, Y)])


def test_objects_are_converted_like_the_first():
    tables = [pd.DataFrame({"x": X}), pd.DataFrame({"x": X[:3]})]
    (first, _), (second, _) = plain_objects(line, [(tables[0], list(Y)), (tables[1], list(Y[:3]))])
    np.testing.assert_array_equal(first, X)
    np.testing.assert_array_equal(second, X[:3])
    ((found, _),) = plain_objects(of_columns, [(tables[0], Y)])
    np.testing.assert_array_equal(found["x"], X)
    with pytest.raises(ValueError, match=r"object 1, y: expected numbers, as in object 0; found None in row 3"):
        plain_objects(line, [(X, Y), (X, [1.0, 2.0, 3.0, None])])
    with pytest.raises(ValueError, match="object 1, y: expected an array without masked values"):
        plain_objects(line, [(X, Y), (X, np.ma.masked_greater(Y, 1.5))])


SHORT = "x has 4, y has 3 rows"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: hbm.prior_predictive(line, x=X, y=Y[:3], num_draws=2), ValueError, SHORT),
        (lambda: hbm.maximum_likelihood(line, X, y=Y[:3], num_starts=1), ValueError, SHORT),
        (lambda: hbm.fit_each(line, [(X, Y[:3])], progress=False), ValueError, SHORT),
        (
            lambda: hbm.maximum_likelihood(line, X, np.where(Y > 1.5, np.nan, Y), num_starts=1),
            StartError,
            r"argument 'y' has NaN in row 2 \(counted from 0\)",
        ),
        (lambda: hbm.maximum_likelihood(line, X, Y, z=Y), TypeError, "'z'"),
        (lambda: hbm.centre(line, X, y=Y, z=Y), TypeError, "'z'"),
    ],
    ids=["prior", "likelihood", "batch", "NaN", "keyword", "keyword-of-centre"],
)
def test_what_does_not_fit_is_named_everywhere(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_calibrate_takes_a_table_by_name():
    with pytest.raises(ValueError, match="x: expected data that the program can use; found a DataFrame of a, b"):
        hbm.calibrate(line, x=pd.DataFrame({"a": X, "b": X}), y=Y, num_replicates=20)
