"""The supernova container: what it keeps, what it refuses and how it says so."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hbm_jax.data import (
    DataError,
    MagnitudeErrorParts,
    Supernovae,
    lensing_variance,
    load_jla,
    read_supernovae,
    velocity_variance,
)


def columns(**changes):
    """Three supernovae as plain columns, with `changes`; None removes a column."""
    table = {
        "name": ["sn_a", "sn_b", "sn_c"],
        "survey": ["deep", "deep", "near"],
        "z_cmb": [0.5, 0.3, 0.02],
        "z_hel": [0.501, 0.301, 0.021],
        "m_b": [23.0, 21.5, 15.1],
        "x1": [0.1, -1.2, 0.4],
        "c": [0.01, -0.05, 0.2],
        "sigma_m_b": [0.05, 0.04, 0.12],
        "sigma_x1": [0.3, 0.2, 0.1],
        "sigma_c": [0.03, 0.02, 0.025],
        "cov_m_x1": [0.001, 0.0, -0.001],
        "cov_m_c": [0.0005, 0.0002, 0.001],
        "cov_x1_c": [0.0, 0.001, 0.0],
        "log10_mass": [10.2, np.nan, 9.1],
        "sigma_log10_mass": [0.1, np.nan, 0.3],
    }
    table.update(changes)
    return {key: value for key, value in table.items() if value is not None}


def assert_same(a, b):
    a, b = a.to_dict(), b.to_dict()
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key, strict=True)


@pytest.fixture
def three():
    return Supernovae.from_columns(columns())


def test_fields_are_what_was_given(three):
    assert three.name == ("sn_a", "sn_b", "sn_c")
    assert three.survey == ("deep", "deep", "near")
    assert len(three) == three.num_objects == 3
    np.testing.assert_array_equal(three.m_b, [23.0, 21.5, 15.1])
    expected = [[0.05**2, 0.001, 0.0005], [0.001, 0.3**2, 0.0], [0.0005, 0.0, 0.03**2]]
    np.testing.assert_array_equal(three.covariance[0], expected)
    np.testing.assert_array_equal(three.has_host_mass, [True, False, True])
    for key in ("variance_coherent", "variance_lensing", "variance_velocity"):
        np.testing.assert_array_equal(getattr(three, key), np.zeros(3))


def test_arrays_are_read_only_float64_copies():
    z_cmb = np.array([0.5, 0.3, 0.02])
    sne = Supernovae.from_columns(columns(z_cmb=z_cmb))
    z_cmb[0] = 9.0
    assert sne.z_cmb[0] == 0.5
    for leaf in jax.tree.leaves(sne):
        assert leaf.dtype == np.float64
        assert not leaf.flags.writeable


def test_optional_columns_have_stated_defaults():
    optional = ("name", "survey", "cov_m_x1", "cov_m_c", "cov_x1_c", "log10_mass", "sigma_log10_mass")
    sne = Supernovae.from_columns(columns(**dict.fromkeys(optional)))
    assert sne.name == ("row 0", "row 1", "row 2")
    assert sne.survey == ("unknown",) * 3
    assert np.isnan(sne.log10_mass).all()
    assert not sne.has_host_mass.any()
    np.testing.assert_array_equal(sne.covariance[1], np.diag(np.square([0.04, 0.2, 0.02])))


def test_errors_may_be_variances_or_the_whole_covariance(three):
    names = ("m_b", "x1", "c")
    as_variances = {f"var_{q}": three.covariance[:, i, i] for i, q in enumerate(names)}
    as_variances |= {f"sigma_{q}": None for q in names}
    assert_same(three, Supernovae.from_columns(columns(**as_variances)))
    parts = [key for key in columns() if key.startswith("cov_")] + [f"sigma_{q}" for q in names]
    assert_same(three, Supernovae.from_columns(columns(covariance=three.covariance, **dict.fromkeys(parts))))


def test_covariances_are_made_exactly_symmetric():
    given = 0.01 * np.eye(3) + 1e-3 * (1.0 - np.eye(3))
    given[0, 1] += 1e-14
    covariance = Supernovae.from_columns(whole(given)).covariance[2]
    np.testing.assert_array_equal(covariance, covariance.T)
    np.testing.assert_allclose(covariance, given, atol=1e-14)


def test_what_is_unusual_stays_with_the_data():
    twice = Supernovae.from_columns(columns(name=["sn", "sn", "other"], x1=[0.0, 0.1, -12.5]))
    assert twice.name == ("sn", "sn", "other")
    red, repeated = twice.warnings
    assert red == "column 'x1' of other is -12.5, unusual for a stretch x1: -10 to 10 are usual"
    assert repeated.startswith("sn is in the table more than once")
    assert twice.describe().endswith(f"Warning: {red}. Warning: {repeated}.")
    again = Supernovae.from_dict(twice.to_dict())
    assert again.warnings == twice.subset([0, 1]).warnings == twice.warnings


def whole(covariance):
    """Columns with the last object's covariance given whole."""
    keys = [key for key in columns() if key.startswith(("sigma_m", "sigma_x", "sigma_c", "cov_"))]
    matrices = np.broadcast_to(0.01 * np.eye(3), (3, 3, 3)).copy()
    matrices[2] = covariance
    return columns(covariance=matrices, **dict.fromkeys(keys))


BAD = {
    "missing column": (columns(x1=None), ["'x1' is missing", "found the columns name, survey, z_cmb"]),
    "misspelt column": (columns(z_helio=[0.1] * 3), ["unknown column 'z_helio' (did you mean 'z_hel'?)"]),
    "missing error": (columns(sigma_c=None), ["'sigma_c' is missing"]),
    "error twice": (columns(var_c=[0.1] * 3), ["c: expected one of 'sigma_c' and 'var_c', found both"]),
    "nan": (columns(m_b=[23.0, np.nan, 15.1]), ["'m_b', row 1 (sn_b): expected a finite number, found nan."]),
    "two nan": (columns(m_b=[23.0, np.nan, np.nan]), ["'m_b', row 1 (sn_b)", "(2 such rows of 3)"]),
    "infinity": (columns(c=[0.0, 0.1, -np.inf]), ["'c', row 2 (sn_c): expected a finite number, found -inf"]),
    "masked": (
        columns(x1=np.ma.array([0.0, 1.0, 2.0], mask=[0, 1, 0])),
        ["'x1', row 1 (sn_b): expected a finite number, found no value (masked or empty)"],
    ),
    "None": (columns(x1=[0.0, None, 2.0]), ["'x1', row 1 (sn_b)", "found no value (masked or empty)"]),
    "text": (columns(c=["0.1", "0.2", "blue"]), ["'c', row 2 (sn_c): expected a number, found 'blue'"]),
    "booleans": (columns(c=[True, False, True]), ["'c': expected numbers, found values of type bool"]),
    "zero error": (
        columns(sigma_x1=[0.3, 0.2, 0.0]),
        ["'sigma_x1', row 2 (sn_c): expected an error above 0, found 0.0"],
    ),
    "negative error": (
        columns(sigma_c=[-1.0, 0.2, 0.1]),
        ["'sigma_c', row 0 (sn_a): expected an error above 0 (if it stands for a missing value", "found -1.0"],
    ),
    "lengths": (columns(m_b=[23.0, 21.0]), ["different length", "z_cmb 3", "m_b 2"]),
    "names too few": (columns(name=["a"]), ["different length", "name 1"]),
    "shape": (
        columns(m_b=np.ones((3, 1))),
        ["'m_b': expected one number per object", "found an array of shape (3, 1)"],
    ),
    "number": (columns(m_b=23.0), ["'m_b': expected one number per object", "found an array of shape ()"]),
    "text shape": (columns(survey="deep"), ["'survey': expected one string per object", "shape ()"]),
    "empty": ({key: [] for key in columns()}, ["the table is empty: expected at least one object, found no rows"]),
    "z_cmb": (
        columns(z_cmb=[0.5, 0.0, 0.1]),
        ["'z_cmb', row 1 (sn_b): expected a redshift between 0 and 20"],
    ),
    "z_hel": (
        columns(z_hel=[0.5, 0.1, -9.0]),
        ["'z_hel', row 2 (sn_c): expected a redshift", "missing=-9), found -9.0"],
    ),
    "variance": (
        columns(variance_lensing=[0.0, 0.0, -1.0]),
        ["'variance_lensing', row 2 (sn_c): expected a variance of 0 or more", "missing=-1), found -1.0"],
    ),
    "not positive definite": (
        columns(cov_m_c=[0.0005, 0.01, 0.001]),
        ["(m_b, x1, c), row 1 (sn_b): expected a positive definite 3 x 3", "eigenvalues -0.009029, 0.011, 0.04003"],
    ),
    "perfect correlation": (
        whole(np.diag([0.0, 0.0, 1.0]) + np.outer([1, 1, 0], [1, 1, 0])),
        ["row 2 (sn_c): expected a positive definite", "smallest of its correlation matrix"],
    ),
    "not symmetric": (
        whole(0.01 * np.eye(3) + [[0, 0.001, 0], [0, 0, 0], [0, 0, 0]]),
        ["'covariance', row 2 (sn_c): expected a symmetric matrix, found [[0.01, 0.001, 0.0]"],
    ),
    "zero diagonal": (whole(np.diag([1.0, 0.0, 1.0])), ["its diagonal, row 2 (sn_c): expected positive variances"]),
    "nan covariance": (whole(np.nan * np.eye(3)), ["'covariance', row 2 (sn_c): expected finite numbers"]),
    "covariance shape": (
        {key: value for key, value in whole(np.eye(3)).items() if key != "covariance"} | {"covariance": np.eye(3)},
        ["'covariance': expected shape (3, 3, 3), found (3, 3)"],
    ),
    "covariance twice": (
        columns(covariance=np.eye(3)),
        ["expected either this covariance or errors in separate"],
    ),
    "linear mass": (columns(log10_mass=[1e10, np.nan, 9.0]), ["row 0 (sn_a)", "between 0 and 14, found 10000000000.0"]),
    "missing mass": (columns(log10_mass=[9.0, -9.0, 9.0]), ["row 1 (sn_b)", "pass missing=-9", "found -9.0"]),
    "missing magnitude": (columns(m_b=[-999.0, 99.0, 20.0]), ["'m_b', row 0 (sn_a)", "missing=(-999, 99)", "2 such"]),
    "missing stretch": (columns(x1=[0.0, 0.1, -9999.0]), ["'x1', row 2 (sn_c)", "missing=-9999), found -9999.0"]),
    "redshifts apart": (
        columns(z_hel=[5.0, 0.1, 0.1]),
        ["'z_cmb' and column 'z_hel', row 0", "one object in two frames"],
    ),
    "mass error": (
        columns(sigma_log10_mass=[-999.0, np.nan, 0.1]),
        [
            "'sigma_log10_mass', row 0 (sn_a): expected an error above 0 (if it stands for a missing value",
            "found -999.0",
        ],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    table, fragments = BAD[case]
    with pytest.raises(DataError) as caught:
        Supernovae.from_columns(table)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


def test_data_error_is_a_value_error_and_pickles():
    assert issubclass(DataError, ValueError)
    assert str(pickle.loads(pickle.dumps(DataError("why")))) == "why"


def test_pytree_round_trip_and_jit(three):
    leaves, structure = jax.tree.flatten(three)
    assert len(leaves) == 21
    assert_same(three, jax.tree.unflatten(structure, leaves))

    traces = []

    @jax.jit
    def total(sne):
        traces.append(sne.num_objects)
        return jnp.sum(sne.m_b) + jnp.sum(sne.covariance)

    assert float(total(three)) == pytest.approx(three.m_b.sum() + three.covariance.sum(), rel=1e-14)
    total(three.replace_observations(three.m_b + 1, three.x1, three.c))
    assert traces == [3]
    doubled = jax.jit(lambda sne: jax.tree.map(lambda leaf: 2 * leaf, sne))(three)
    assert doubled.name == three.name
    np.testing.assert_array_equal(doubled.m_b, 2 * three.m_b)


def test_unflatten_does_not_validate(three):
    structure = jax.tree.structure(three)
    assert jax.tree.unflatten(structure, [None] * 21).m_b is None
    assert repr(jax.tree.unflatten(structure, [None] * 21)) == "Supernovae(3 objects)"


def test_probabilities_of_type_ia(three):
    columns = {k: v for k, v in three.to_dict().items() if k != "warnings"}
    assert "prob_ia" not in columns
    np.testing.assert_array_equal(three.prob_ia, 1.0)
    photometric = Supernovae.from_columns(columns | {"prob_ia": [0.25, np.nan, 0.0]})
    np.testing.assert_array_equal(photometric.prob_ia, [0.25, 1.0, 0.0])
    assert "2 have a probability of type Ia below 1; 1.8 expected not to be of it" in photometric.describe()
    assert_same(Supernovae.from_dict(photometric.to_dict()), photometric)
    np.testing.assert_array_equal(read_supernovae(photometric.to_table()).prob_ia, photometric.prob_ia)
    with pytest.raises(DataError, match=r"prob_ia.*expected a probability .*found 1.5"):
        Supernovae.from_columns(columns | {"prob_ia": [0.5, 1.5, 1.0]})


def test_dict_round_trip_is_exact(three):
    stored = three.with_variances(coherent=0.01, lensing=[0.1, 0.2, 0.3]).to_dict()
    assert all(isinstance(value, np.ndarray) for value in stored.values())
    back = Supernovae.from_dict(stored)
    assert back.name == three.name
    assert back.survey == three.survey
    assert_same(Supernovae.from_dict(back.to_dict()), back)
    np.testing.assert_array_equal(back.variance_lensing, [0.1, 0.2, 0.3])
    np.testing.assert_array_equal(back.covariance, three.covariance)
    # files hand strings back as objects
    assert_same(back, Supernovae.from_dict(stored | {"name": stored["name"].astype(object)}))


def test_dict_round_trip_of_strings_and_of_jla():
    names = ["SN 1998bu", "supernova α Ω", " padded "]
    sne = Supernovae.from_columns(columns(name=names))
    assert Supernovae.from_dict(sne.to_dict()).name == tuple(names)
    assert_same(load_jla(), Supernovae.from_dict(load_jla().to_dict()))


def test_netcdf_round_trip_is_exact(three, tmp_path):
    pytest.importorskip("h5py")
    xarray = pytest.importorskip("xarray")
    dims = {"covariance": ("object", "row", "column")}
    stored = {key: (dims.get(key, ("object",)), value) for key, value in three.to_dict().items()}
    xarray.Dataset(stored).to_netcdf(tmp_path / "data.nc", engine="h5netcdf")
    with xarray.open_dataset(tmp_path / "data.nc", engine="h5netcdf") as dataset:
        back = Supernovae.from_dict({key: value.values for key, value in dataset.data_vars.items()})
    assert_same(three, back)


def test_subset(three):
    for rows in (three.z_cmb < 0.4, [1, 2], np.array([1, 2]), [-2, -1]):
        some = three.subset(rows)
        assert some.name == ("sn_b", "sn_c")
        np.testing.assert_array_equal(some.covariance, three.covariance[1:])
        np.testing.assert_array_equal(some.log10_mass, three.log10_mass[1:])
    assert three.subset([2, 0, 0]).name == ("sn_c", "sn_a", "sn_a")


@pytest.mark.parametrize(
    ("rows", "fragment"),
    [
        ([True, False], "expected a mask of shape (3,); found shape (2,)"),
        ([False] * 3, "at least one object"),
        ([], "at least one object"),
        ([0, 3], "expected indices from -3 to 2; found 3"),
        ([0.0, 1.0], "found float64 of shape (2,)"),
        (1, "of shape ()"),
    ],
)
def test_bad_subset(three, rows, fragment):
    with pytest.raises(DataError) as caught:
        three.subset(rows)
    assert fragment in str(caught.value)


def test_replace_observations(three):
    new = three.replace_observations(jnp.array([1.0, 2.0, 3.0]), [4.0, 5.0, 6.0], np.array([7, 8, 9]))
    np.testing.assert_array_equal(new.m_b, [1, 2, 3])
    np.testing.assert_array_equal(new.c, [7, 8, 9])
    np.testing.assert_array_equal(new.z_cmb, three.z_cmb)
    assert three.m_b[0] == 23.0
    with pytest.raises(DataError, match=r"x1, row 2 \(sn_c\): expected a finite number, found nan"):
        three.replace_observations(three.m_b, [0, 0, np.nan], three.c)
    with pytest.raises(DataError, match="the container 3, m_b 2"):
        three.replace_observations([1.0, 2.0], [1.0, 2.0], [1.0, 2.0])


def test_variances_against_plain_numbers(three):
    assert lensing_variance(0.5) == (0.055 * 0.5) ** 2
    assert velocity_variance(0.02, 300.0) == pytest.approx((5 * 300 / (2.302585092994046 * 299792.458 * 0.02)) ** 2)
    filled = three.with_variances(
        lensing=lensing_variance(three.z_cmb), velocity=velocity_variance(three.z_cmb), coherent=0.01
    )
    total = three.covariance[:, 0, 0] + 0.01 + (0.055 * three.z_cmb) ** 2 + velocity_variance(three.z_cmb)
    np.testing.assert_allclose(filled.variance_m_b_total, total, rtol=1e-15)
    np.testing.assert_array_equal(filled.with_variances(lensing=0.0).variance_coherent, [0.01] * 3)
    with pytest.raises(
        DataError, match=r"variance_velocity, row 1 \(sn_b\): expected a variance of 0 or more, found -1"
    ):
        three.with_variances(velocity=[0, -1, 0])
    with pytest.raises(DataError, match="the container 3, variance_lensing 2"):
        three.with_variances(lensing=[0, 1])


def test_separate_error_parts(three):
    parts = MagnitudeErrorParts(coherent_scatter={"deep": 0.01, "near": 0.02}, lensing_per_z=0.055)
    apart = three.separate_error_parts(parts)
    np.testing.assert_allclose(apart.variance_m_b_total, three.covariance[:, 0, 0], rtol=1e-14)
    np.testing.assert_array_equal(apart.variance_coherent, np.square([0.01, 0.01, 0.02]))
    np.testing.assert_array_equal(apart.covariance[:, 1:], three.covariance[:, 1:])
    with pytest.raises(DataError, match="no separate variances yet, found variance_coherent, variance_lensing"):
        apart.separate_error_parts(parts)
    with pytest.raises(DataError, match=r"no value for survey 'deep' \(did you mean 'Deep'\?\)"):
        three.separate_error_parts(MagnitudeErrorParts({"Deep": 0.1, "near": 0.1}))
    with pytest.raises(
        DataError, match=r"row 1 \(sn_b\): expected a positive variance .* found -0.000425 mag\^2 left of 0.0016"
    ):
        three.separate_error_parts(MagnitudeErrorParts(0.045))
    with pytest.raises(DataError, match=r"minus the separated parts, row 2 \(sn_c\): expected a positive definite"):
        three.separate_error_parts(MagnitudeErrorParts({"deep": 0.0, "near": 0.1195}))


def test_describe(three):
    assert three.describe() == (
        "3 type Ia supernovae at redshift 0.02 to 0.5 (deep 2, near 1). Fit errors of m_b, x1 and c are correlated; "
        "separate variances of m_b: none; host masses: 2 of 3."
    )


def test_the_former_name_of_column_names_is_taken_with_a_warning():
    bad = columns(sigma_c=[0.03, -1.0, 0.025])
    with pytest.raises(DataError, match="column 'width'"):
        Supernovae.from_columns(bad, column_names={"sigma_c": "width"})
    with (
        pytest.warns(DeprecationWarning, match="called= is now column_names="),
        pytest.raises(DataError, match="width"),
    ):
        Supernovae.from_columns(bad, called={"sigma_c": "width"})
    with pytest.raises(TypeError, match="expected column_names; found also called"):
        Supernovae.from_columns(bad, called={}, column_names={})
