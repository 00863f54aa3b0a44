"""Made-up designs of samples, for simulations from nothing (``hbm-jax simulate relation --num 100``).

Each function takes a model, a number of objects, a random generator and options of the reader, and returns a `Design`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hbm_jax.configuration import ConfigError

POINTS_PER_GROUP = 10
SURVEY_BOUNDARY = 0.1  # redshift that separates the two made-up surveys of supernovae


class Design(NamedTuple):
    """Made-up design of a sample.

    Attributes
    ----------
    data : container
        The design; its observed values only set the scales of default priors.
    truth : dict of str to float
        Typical true values of parameters, some of which the model may lack.
    options : dict of str to Any
        Options with which the reader reads the sample.
    arrays : dict of str to mapping
        Arrays to write to an ``.npz`` file beside the sample, by the option of the reader that names the file.
    """

    data: Any
    truth: Mapping[str, float]
    options: Mapping[str, Any] = {}
    arrays: Mapping[str, Mapping[str, Any]] = {}


def relation(model, num: int, rng, *, predictors: Sequence[str] = ("x",), group_predictors: Sequence[str] = ()):
    """Return points with errors of 0.2 in predictors and response, in groups of about ten unless pooling is complete.

    Predictors have mean 0 and standard deviation 1.
    """
    from hbm_jax.data import PointsInGroups

    slopes = [1.5, -1.0, 0.5]
    columns: dict[str, Any] = {name: rng.normal(size=num) for name in predictors}
    linear = sum(slopes[index % 3] * columns[name] for index, name in enumerate(predictors))
    columns["y"] = 1.0 + linear + rng.normal(0.0, 0.4, num)
    columns |= {f"sigma_{name}": np.full(num, 0.2) for name in (*predictors, "y")}
    if model.pooling != "complete" or group_predictors:
        labels = _groups(num)
        columns["group"] = labels
        for name in group_predictors:
            values = dict(zip(dict.fromkeys(labels), rng.normal(size=len(set(labels))), strict=True))
            columns[name] = np.array([values[label] for label in labels])
    if getattr(model, "evolution", None):
        columns["redshift"] = rng.uniform(0.05, 1.0, num)
    truth = {"intrinsic_scatter": 0.3, "x_mean": 0.0, "x_std": 1.0}
    if len(predictors) == 1:
        truth |= {"alpha": 1.5, "beta": 1.0, "alpha_mean": 1.5, "alpha_std": 0.3, "beta_mean": 1.0, "beta_std": 0.5}
    data = PointsInGroups.from_columns(columns, predictors=predictors, group_predictors=group_predictors)
    options = {"predictors": list(predictors)} if tuple(predictors) != ("x",) else {}
    options |= {"group_predictors": list(group_predictors)} if group_predictors else {}
    return Design(data, truth, options)


def normal(model, num: int, rng, *, components: Sequence[str] = ("y",)) -> Design:
    """Return `num` groups of one value with an error of 0.5, or of five values without errors where sigma is inferred.

    The standard deviation of the population is 1.
    """
    from hbm_jax.data import ValuesInGroups

    size = 5 if getattr(model, "sigma", "known") == "inferred" else 1
    labels = [f"group {index:04d}" for index in range(num) for _ in range(size)]
    columns: dict[str, Any] = {"group": labels}
    for name in components:
        columns[name] = rng.normal(size=num).repeat(size) + rng.normal(0.0, 0.5, num * size)
        if size == 1:
            columns[f"sigma_{name}"] = np.full(num, 0.5)
    data = ValuesInGroups.from_columns(columns, components=components)
    options = {"components": list(components)} if tuple(components) != ("y",) else {}
    return Design(data, {"mu": 2.0, "tau": 1.0, "sigma": 0.5} if len(components) == 1 else {}, options)


def normal_vectors(model, num: int, rng, *, components: Sequence[str] = ("u", "v")) -> Design:
    """Return the design of `normal` for vectors, of two components unless their names are given."""
    return normal(model, num, rng, components=components)


def regression(
    model,
    num: int,
    rng,
    *,
    formula: str = "y ~ x + (1 | group)",
    trials: str | None = None,
    exposure: str | None = None,
    offset: str | None = None,
    error: str | None = None,
) -> Design:
    """Return points with the columns of a formula.

    Factors of groups have about ten points each, columns in ``C()`` three categories, and all other columns are uniform
    from 1 to 5. Numbers of trials are 10 to 30, exposures 1 to 3 and errors 0.2.

    Raises
    ------
    ConfigError
        For a formula whose response is an expression.
    """
    from hbm_jax.data import RegressionData
    from hbm_jax.data.regression.grammar import parse

    if model.family == "categorical" and "|" in formula:
        formula = "y ~ x"
    if model.family == "binomial":
        trials = trials or "trials"
    parsed = parse(formula)
    if parsed.response not in parsed.columns:
        raise ConfigError(
            f"formula: expected a column as the response of a simulated sample; found {parsed.response!r}. Use the "
            "name of a column, such as y."
        )
    roles = {"trials": trials, "exposure": exposure, "offset": offset, "error": error}
    roles = {role: column for role, column in roles.items() if column}
    columns: dict[str, Any] = {}
    for name in sorted(parsed.columns - {parsed.response}):
        columns[name] = rng.uniform(1.0, 5.0, num)
    for name in re.findall(r"\bC\(`?([^`)]+)`?\)", parsed.fixed):
        columns[name] = rng.permutation(np.resize(["a", "b", "c"], num))
    for term in parsed.groups:
        for name in term.factors:
            groups = _groups(num)
            columns[name] = [int(label.split()[1]) for label in groups] if term.walk else rng.permutation(groups)
    values = {
        "trials": rng.integers(10, 31, num),
        "exposure": rng.uniform(1.0, 3.0, num),
        "offset": np.zeros(num),
        "error": np.full(num, 0.2),
    }
    columns |= {str(column): values[role] for role, column in roles.items()}
    columns[parsed.response] = _responses(model.family, num, rng)
    data = RegressionData.from_columns(columns, formula, **roles)
    truth = {"intercept": 0.5, "sigma": 0.5, "nu": 5.0, "overdispersion": 0.3}
    truth |= {f"sd[{group.name}]": 0.5 for group in data.groups}
    if model.family != "categorical":
        predictors = [term for term in data.terms if term != "Intercept"]
        truth |= {f"coef[{term}]": (0.5, -0.3)[index % 2] for index, term in enumerate(predictors)}
    return Design(data, truth, {"formula": formula, **roles})


def rates(model, num: int, rng, *, formula: str = "hits ~ 1", trials: str | None = None, exposure: str | None = None):
    """Return groups with 10 to 30 trials or, for Poisson counts, exposures of 5 to 20."""
    from hbm_jax.data import RegressionData

    if model.family == "binomial":
        role, column, sizes = "trials", trials or "trials", rng.integers(10, 31, num)
    else:
        role, column, sizes = "exposure", exposure or "exposure", rng.uniform(5.0, 20.0, num)
    response = formula.partition("~")[0].strip()
    columns = {response: rng.integers(0, 6, num), column: sizes}
    data = RegressionData.from_columns(columns, formula, **{role: column})
    shape = {"alpha": 4.0, "beta": 10.0}
    return Design(data, {"mean": 0.3, "dispersion": 0.3, **shape}, {"formula": formula, role: column})


def supernova(model, num: int, rng) -> Design:
    """Return supernovae at redshifts of 0.01 to 1, a third of them below 0.1, with errors and hosts as those of JLA."""
    return Design(_supernovae(num, rng), _supernova_truth())


def supernova_correlated(model, num: int, rng) -> Design:
    """Return the design of `supernova`, with a common error of 0.02 mag of the magnitudes of each survey."""
    from hbm_jax.data import CorrelatedSupernovae

    sne = _supernovae(num, rng)
    blocks = {"v0": _common_errors(sne.z_cmb, 0.02)}
    data = CorrelatedSupernovae.from_supernovae(sne, blocks)
    return Design(data, _supernova_truth(), arrays={"covariance": blocks})


def hubble_diagram(model, num: int, rng) -> Design:
    """Return distance moduli at redshifts of 0.01 to 1 with errors of 0.12 mag, and 0.02 mag common to each survey.

    For a calibrated model they are standardised magnitudes, and a tenth of the objects are calibrators.
    """
    from hbm_jax.data import DistanceModuli

    z = _redshifts(num, rng)
    columns = {
        "name": [f"SN {index:04d}" for index in range(num)],
        "survey": _surveys(z),
        "z_cmb": z,
        "covariance": np.diag(np.full(num, 0.12**2)) + _common_errors(z, 0.02),
    }
    if model.calibrated:
        num_calibrators = max(3, num // 10)
        columns["m_b_corr"] = 24.0 + 5.0 * np.log10(z)
        columns["mu_calibrator"] = np.full(num, np.nan)
        columns["z_cmb"][:num_calibrators] = rng.uniform(0.002, 0.01, num_calibrators)
        columns["mu_calibrator"][:num_calibrators] = 43.2 + 5.0 * np.log10(columns["z_cmb"][:num_calibrators])
    else:
        columns["mu"] = 43.2 + 5.0 * np.log10(z)
    truth = _COSMOLOGY | {"M0": -19.3 if model.calibrated else 0.0, "sigma_int": 0.1}
    return Design(DistanceModuli.from_columns(columns), truth)


_COSMOLOGY = {"H0": 70.0, "Om0": 0.3, "Ok0": 0.0, "w0": -1.0, "wa": 0.0, "r_d": 147.1}


def _supernova_truth() -> dict[str, float]:
    """Return typical values of the parameters of supernovae."""
    population = {"x1_mean": 0.0, "x1_std": 1.0, "c_mean": 0.0, "c_std": 0.08}
    return _COSMOLOGY | {"M0": -19.3, "alpha": 0.14, "beta": 3.1, "delta_M": -0.06, "sigma_int": 0.1} | population


def _supernovae(num: int, rng):
    """Return made-up supernovae."""
    from hbm_jax.data import Supernovae, lensing_variance, velocity_variance

    z = _redshifts(num, rng)
    return Supernovae.from_columns(
        {
            "name": [f"SN {index:04d}" for index in range(num)],
            "survey": _surveys(z),
            "z_cmb": z,
            "z_hel": z,
            "m_b": 24.0 + 5.0 * np.log10(z),
            "x1": rng.normal(size=num),
            "c": rng.normal(0.0, 0.08, num),
            "sigma_m_b": 0.04 + 0.06 * z,
            "sigma_x1": 0.15 + 0.6 * z,
            "sigma_c": 0.025 + 0.025 * z,
            "variance_lensing": lensing_variance(z),
            "variance_velocity": velocity_variance(z),
            "log10_mass": rng.normal(10.3, 0.7, num),
            "sigma_log10_mass": np.full(num, 0.15),
        }
    )


def _redshifts(num: int, rng) -> np.ndarray:
    """Return sorted redshifts, a third from 0.01 to 0.1 and the others from 0.1 to 1."""
    num_low = num // 3
    low, high = (0.01, SURVEY_BOUNDARY), (SURVEY_BOUNDARY, 1.0)
    return np.sort(np.concatenate([rng.uniform(*low, num_low), rng.uniform(*high, num - num_low)]))


def _surveys(z: np.ndarray) -> list[str]:
    """Return the made-up survey of each redshift."""
    return ["low z" if value < SURVEY_BOUNDARY else "high z" for value in z]


def _common_errors(z: np.ndarray, sigma: float) -> np.ndarray:
    """Return the covariance of an error that is common to each of the two surveys."""
    is_low = z < SURVEY_BOUNDARY
    return sigma**2 * (is_low[:, None] == is_low)


def _groups(num: int) -> list[str]:
    """Return the labels of two groups or more, of about `POINTS_PER_GROUP` points each."""
    num_groups = max(2, round(num / POINTS_PER_GROUP))
    return [f"group {index * num_groups // num:03d}" for index in range(num)]


def _responses(family: str, num: int, rng) -> Any:
    """Return values that a response of a family can have."""
    if family in ("normal", "student_t"):
        return rng.normal(size=num)
    if family == "categorical":
        return np.resize(["a", "b", "c"], num)
    return rng.integers(0, 2 if family == "bernoulli" else 6, num)
