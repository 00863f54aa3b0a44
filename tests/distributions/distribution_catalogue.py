"""Every distribution with an independent log density and independent draws, for `test_distribution_laws`.

(The name is not `catalogue`: tests/cosmology has one, and files of tests share one space of names.)
"""

import jax.numpy as jnp
import normal_oracles as oracles
import numpy as np
import numpyro.distributions as dist
from distribution_family import Family, normal_family
from normal_oracles import covariance_of, triangle_of
from scipy import stats

from hbm_jax.distributions import (
    CoordinatePriors,
    CorrelatedNormal,
    GroupedLinearRelation,
    GroupedNormal,
    HalfLine,
    LinearGaussian,
    LinearRelation,
    MeasuredPoints,
    ObservedMixture,
    Offset,
    ProbitSelection,
    SkewNormal,
    SoftHalfNormal,
    projected,
    whiten,
)
from hbm_jax.distributions.linear.linear_coordinates import LinearCoordinates, Piece
from hbm_jax.distributions.linear.measured_points import Limits
from hbm_jax.distributions.normal.block_normal import BlockNormal

FAMILIES: dict[str, Family] = {}

# One number.

FAMILIES["skew normal"] = Family(
    lambda p: SkewNormal(p["loc"], p["scale"], p["shape"]),
    lambda rng: {"loc": rng.normal(), "scale": rng.uniform(0.5, 2.0), "shape": 3.0 * rng.normal()},
    lambda p, value: stats.skewnorm(p["shape"], p["loc"], p["scale"]).logpdf(value),
    lambda rng, p, num: stats.skewnorm(p["shape"], p["loc"], p["scale"]).rvs(num, random_state=rng),
    moments=lambda p: dict(
        zip(("mean", "variance"), stats.skewnorm(p["shape"], p["loc"], p["scale"]).stats("mv"), strict=True)
    ),
    invalid={"scale": -1.0, "loc": np.nan, "shape_parameter": np.nan},
)
FAMILIES["half normal"] = Family(
    lambda p: SoftHalfNormal(p["scale"]),
    lambda rng: {"scale": rng.uniform(0.5, 2.0)},
    lambda p, value: stats.halfnorm(0.0, p["scale"]).logpdf(value),
    lambda rng, p, num: stats.halfnorm(0.0, p["scale"]).rvs(num, random_state=rng),
    moments=lambda p: {"mean": p["scale"] * np.sqrt(2 / np.pi), "variance": p["scale"] ** 2 * (1 - 2 / np.pi)},
    invalid={"scale": -1.0},
)

# Gaussian latents integrated out.


def _gaussian(n, k, loading=True):
    def one(rng):
        p = {
            "latent_loc": rng.normal(size=k),
            "latent_scale_tril": triangle_of(rng, k),
            "noise_covariance": covariance_of(rng, n),
            "offset": rng.normal(size=n),
        }
        return p | ({"loading": rng.normal(size=(n, k))} if loading else {})

    return one


def _gaussian_moments(p):
    mean, covariance = oracles.linear_gaussian(p)
    return {"mean": mean, "variance": np.diag(covariance), "covariance_matrix": covariance}


FAMILIES["linear Gaussian"] = normal_family(
    lambda p: LinearGaussian(**p),
    _gaussian(3, 2),
    oracles.linear_gaussian,
    moments=_gaussian_moments,
    forward=True,
    invalid={"noise_covariance": -np.eye(3), "latent_loc": np.full(2, np.nan)},
)
FAMILIES["linear Gaussian, large"] = normal_family(
    lambda p: LinearGaussian(**p), _gaussian(7, 2), oracles.linear_gaussian, moments=_gaussian_moments, single=False
)
FAMILIES["linear Gaussian, components apart"] = normal_family(
    lambda p: LinearGaussian(**(p | {"latent_loc": tuple(p["latent_loc"][..., i] for i in range(3))})),
    _gaussian(3, 3, loading=False),
    oracles.linear_gaussian,
    moments=_gaussian_moments,
    single=False,
)


def _grouped(size):
    def one(rng):
        return {
            "loc": rng.normal(size=size),
            "scale_tril": triangle_of(rng, size),
            "noise": np.array([covariance_of(rng, size) for _ in range(3)]),
            "used": np.append(True, rng.random(2) < 0.5),
        }

    return one


GROUPED_LOG_DENSITY, GROUPED_DRAW = oracles.of_used(oracles.grouped_normal)
FAMILIES["grouped normal"] = Family(
    lambda p: GroupedNormal(p["loc"], p["scale_tril"], p["noise"], p["used"]),
    _grouped(2),
    GROUPED_LOG_DENSITY,
    GROUPED_DRAW,
    constant=("used",),
)
KNOWN_NOISE = np.random.default_rng(9).uniform(0.3, 2.0, size=(3, 1, 1))
FAMILIES["grouped normal of known errors"] = Family(
    lambda p: GroupedNormal(p["loc"], p["scale_tril"], KNOWN_NOISE, np.array([True, True, False])),
    lambda rng: {"loc": rng.normal(size=1), "scale_tril": rng.uniform(0.3, 1.0, size=(1, 1))},
    GROUPED_LOG_DENSITY,
    GROUPED_DRAW,
    single=False,
    known={"noise": KNOWN_NOISE, "used": np.array([True, True, False])},
)

# Large normals.

FAMILIES["block normal"] = normal_family(
    lambda p: BlockNormal(**p),
    lambda rng: {
        "loc": rng.normal(size=5),
        "diagonal": rng.uniform(0.5, 1.0, size=5),
        "coefficients": rng.uniform(0.5, 1.5, size=2),
        "blocks": np.array([covariance_of(rng, 5, 0.0) for _ in range(2)]),
    },
    lambda p: (p["loc"], np.diag(p["diagonal"]) + np.tensordot(p["coefficients"], p["blocks"], 1)),
    moments=lambda p: {
        "mean": p["loc"],
        "variance": p["diagonal"] + np.diagonal(np.tensordot(p["coefficients"], p["blocks"], 1)),
        "covariance_matrix": np.diag(p["diagonal"]) + np.tensordot(p["coefficients"], p["blocks"], 1),
    },
    batched=False,
    forward=True,
    invalid={"loc": np.full(5, np.nan)},
)
_RNG = np.random.default_rng(4)
CORRELATED = {
    "covariance": covariance_of(_RNG, 6),
    "weights": np.array([1.0, 2.0, 0.5, 0.0, 0.0, 0.0]),
    "basis": _RNG.normal(size=(6, 2)),
    "fixed": _RNG.normal(size=6),
}


def _correlated(p):
    whitening = whiten(CORRELATED["covariance"], CORRELATED["weights"])
    projection = projected(whitening, CORRELATED["basis"])
    offset = Offset(p["offset_loc"], p["offset_scale"])
    return CorrelatedNormal(whitening, CORRELATED["fixed"], projection, p["coefficients"], p["scatter"], offset)


def correlated_moments(p):
    """Mean and covariance, the offset integrated out."""
    covariance = p["covariance"] + p["offset_scale"] ** 2
    if p["weights"] is not None:
        covariance = covariance + p["scatter"] ** 2 * np.diag(p["weights"])
    return p["fixed"] + p["basis"] @ p["coefficients"] + p["offset_loc"], covariance


FAMILIES["correlated normal"] = normal_family(
    _correlated,
    lambda rng: {
        "coefficients": rng.normal(size=2),
        "scatter": rng.uniform(0.3, 1.0),
        "offset_loc": rng.normal(),
        "offset_scale": rng.uniform(0.3, 1.0),
    },
    correlated_moments,
    batched=False,
    many_values=False,
    rebuilds=False,
    single=False,
    known=CORRELATED,
)

# Points on lines.


def _line(limit):
    def one(rng):
        p = {
            "x_loc": rng.normal(),
            "x_scale": rng.uniform(0.5, 1.5),
            "intercept": rng.normal(),
            "slope": rng.normal(),
            "scatter": rng.uniform(0.2, 1.0),
            "errors": covariance_of(rng, 2)[np.triu_indices(2)],
        }
        return p | ({"limit": 0.5 * rng.normal()} if limit else {})

    return one


FAMILIES["linear relation"] = normal_family(
    lambda p: LinearRelation(**p),
    _line(limit=False),
    oracles.linear_relation,
    moments=lambda p: {"mean": oracles.linear_relation(p)[0]},
    single=False,
    invalid={"slope": np.nan},
)
FAMILIES["linear relation above a limit"] = Family(
    lambda p: LinearRelation(**p), _line(limit=True), oracles.log_linear_relation, oracles.draw_linear_relation
)


def _lines(rng):
    return {
        "group_loc": rng.normal(),
        "group_scale": rng.uniform(0.3, 1.0),
        "offset_loc": rng.normal(),
        "offset_scale": rng.uniform(0.3, 1.0),
        "slope": rng.normal(),
        "x_scale": rng.uniform(0.3, 1.0),
        "scatter": rng.uniform(0.2, 1.0),
        "x_shift": rng.normal(size=3),
        "intercept": rng.normal(size=3),
        "errors": np.array([covariance_of(rng, 2)[np.triu_indices(2)] for _ in range(3)]),
        "used": np.append(True, rng.random(2) < 0.5),
    }


def _lines_without(*names):
    return lambda rng: {name: v for name, v in _lines(rng).items() if name not in names}


LINES_LOG_DENSITY, LINES_DRAW = oracles.of_used(oracles.grouped_relation)
LINES = {"log_density": LINES_LOG_DENSITY, "draw": LINES_DRAW, "many_values": False, "many_draws": False}
ALL, SOME = np.array([True, True, True]), np.array([True, False, True])
FAMILIES["grouped lines"] = Family(
    lambda p: GroupedLinearRelation(**p), _lines, constant=("used",), invalid={"slope": np.nan}, **LINES
)
FAMILIES["grouped lines without padding"] = Family(
    lambda p: GroupedLinearRelation(**p, used=ALL),
    _lines_without("used"),
    known={"used": ALL},
    draws=False,
    single=False,
    **LINES,
)
FAMILIES["grouped lines, one mean"] = Family(
    lambda p: GroupedLinearRelation(**p, group_scale=None, used=SOME),
    _lines_without("used", "group_scale"),
    known={"used": SOME},
    single=False,
    **LINES,
)
FAMILIES["grouped lines, one mean, without padding"] = Family(
    lambda p: GroupedLinearRelation(**p, group_scale=None, used=ALL),
    _lines_without("used", "group_scale"),
    known={"used": ALL},
    draws=False,
    single=False,
    **LINES,
)

# Points with mixtures, outliers and limits.


def _points(num, predictors, **more):
    def one(rng):
        shares = rng.uniform(0.5, 1.0, size=num)
        p = {
            "x_loc": rng.normal(size=(num, predictors)),
            "x_cov": np.array([covariance_of(rng, predictors) for _ in range(num)]),
            "log_weights": np.log(shares / shares.sum()),
            "intercept": rng.normal(),
            "slope": rng.normal(size=predictors),
            "scatter": rng.uniform(0.3, 1.0),
            "errors": covariance_of(rng, predictors + 1),
        }
        return p | {name: draw(rng) for name, draw in more.items()}

    return one


PLAIN = ("x_loc", "x_cov", "log_weights", "intercept", "slope", "scatter", "errors")


def _measured(p):
    limits = Limits(p["at"], p["side"], p.get("order")) if "at" in p else None
    outliers = (p["outlier_share"], p["outlier_scale"]) if "outlier_share" in p else None
    return MeasuredPoints(**{name: p[name] for name in PLAIN}, limits=limits, outliers=outliers, nu=p.get("nu"))


POINTS = {"build": _measured, "log_density": oracles.log_points, "draw": oracles.draw_points}
FAMILIES["measured points with outliers"] = Family(
    one=_points(2, 2, outlier_share=lambda rng: 0.3, outlier_scale=lambda rng: 2.0),
    shared=("log_weights", "outlier_share", "outlier_scale"),
    **POINTS,
)
FAMILIES["measured points, Student's t"] = Family(
    one=_points(2, 1, nu=lambda rng: 3.0), shared=("log_weights", "nu"), rtol=1e-7, slope_rtol=1e-5, **POINTS
)
FAMILIES["measured points with limits"] = Family(
    one=_points(
        2, 1,
        at=lambda rng: 0.5 * rng.normal(),
        side=lambda rng: rng.choice([-1.0, 1.0]),
        order=lambda rng: np.eye(2)[:: rng.choice([-1, 1])],
    ),
    shared=("log_weights",),
    single=False,
    constant=("at", "side", "order", "value"),
    **POINTS,
)  # fmt: skip

# Mixtures with a positive latent and a selection.


def _mixture(half_line=None, selected=False):
    def one(rng):
        shares = rng.uniform(0.5, 1.0, size=2)
        p = {
            "log_weights": np.log(shares / shares.sum()),
            "loc": rng.normal(size=(2, 2)),
            "scale_tril": np.array([triangle_of(rng, 2) for _ in range(2)]),
            "noise_covariance": covariance_of(rng, 2),
            "offset": rng.normal(size=2),
        }
        if half_line:
            p |= {"direction": rng.normal(size=(2, 2)), "rate": rng.uniform(2.5, 4.0, size=2)}
        if half_line == "truncated":
            p |= {"precision": rng.uniform(0.5, 2.0, size=2), "rate": rng.normal(size=2)}
        if selected:
            p |= {
                "limit": rng.uniform(0.5, 1.5),
                "width": rng.uniform(0.3, 1.0),
                "slope": rng.uniform(-0.7, 0.7, size=2),
            }
        return p

    return one


def _observed(p):
    half_line = HalfLine(p["direction"], p["rate"], p.get("precision")) if "rate" in p else None
    selection = ProbitSelection(p["limit"], p["width"], p["slope"]) if "limit" in p else None
    plain = (p[name] for name in ("log_weights", "loc", "scale_tril", "noise_covariance"))
    return ObservedMixture(*plain, offset=p["offset"], half_line=half_line, selection=selection)


MIXTURE = {"build": _observed, "log_density": oracles.log_mixture, "draw": oracles.draw_mixture}
FAMILIES["observed mixture"] = Family(
    one=_mixture(), single=False, invalid={"log_weights": np.full(2, np.nan)}, **MIXTURE
)
FAMILIES["observed mixture, exponential, selected"] = Family(
    one=_mixture("exponential", selected=True), single=False, rtol=1e-7, slope_rtol=1e-5, **MIXTURE
)
FAMILIES["observed mixture, truncated, selected"] = Family(
    one=_mixture("truncated", selected=True), rtol=1e-7, slope_rtol=1e-5, **MIXTURE
)

# Priors in other coordinates.


def _coordinates(p):
    def ridge(parameters):
        return p["shift"] * jnp.sin(parameters["first"]), jnp.exp(p["widening"] * parameters["first"])

    priors = {"first": dist.Normal(p["loc"], p["scale"]), "second": dist.HalfNormal(p["width"])}
    return CoordinatePriors(priors, {"second": ridge})


HINGE = 0.05


def _log_coordinates(p, y):
    scale = np.exp(p["widening"] * y[0])
    t = (p["shift"] * np.sin(y[0]) + scale * y[1]) / HINGE
    second = HINGE * np.logaddexp(0.0, t)
    log = stats.norm(p["loc"], p["scale"]).logpdf(y[0]) + stats.halfnorm(0.0, p["width"]).logpdf(second)
    return log - np.logaddexp(0.0, -t) + np.log(scale)


def _draw_coordinates(rng, p, num):
    first, second = rng.normal(p["loc"], p["scale"], num), p["width"] * np.abs(rng.normal(size=num))
    straight = HINGE * np.log(np.expm1(second / HINGE))
    return np.column_stack([first, (straight - p["shift"] * np.sin(first)) / np.exp(p["widening"] * first)])


FAMILIES["coordinates along a ridge"] = Family(
    _coordinates,
    lambda rng: {
        "loc": rng.normal(),
        "scale": rng.uniform(0.5, 1.5),
        "width": rng.uniform(0.5, 1.5),
        "shift": rng.normal(),
        "widening": 0.3 * rng.normal(),
    },
    _log_coordinates,
    _draw_coordinates,
    batched=False,
    rebuilds=False,
)


def _linear(p):
    pieces = [
        Piece(np.array([0, 2]), dist.Normal(p["prior_loc"], p["prior_scale"])),
        Piece(np.array([1]), dist.StudentT(4.0, p["prior_loc"][:1], 1.5)),
    ]
    return LinearCoordinates(pieces, p["matrix"], p["loc"])


def _log_linear(p, z):
    c = p["loc"] + p["matrix"] @ z
    log = stats.norm(p["prior_loc"], p["prior_scale"]).logpdf(c[[0, 2]]).sum()
    return log + stats.t(4.0, p["prior_loc"][0], 1.5).logpdf(c[1]) + np.linalg.slogdet(p["matrix"])[1]


def _draw_linear(rng, p, num):
    c = rng.normal(size=(num, 3))
    c[:, [0, 2]] = p["prior_loc"] + p["prior_scale"] * c[:, [0, 2]]
    c[:, 1] = p["prior_loc"][0] + 1.5 * rng.standard_t(4.0, num)
    return np.linalg.solve(p["matrix"], (c - p["loc"]).T).T


FAMILIES["linear coordinates"] = Family(
    _linear,
    lambda rng: {
        "matrix": rng.normal(size=(3, 3)) + 2.0 * np.eye(3),
        "loc": rng.normal(size=3),
        "prior_loc": rng.normal(size=2),
        "prior_scale": rng.uniform(0.5, 1.5, size=2),
    },
    _log_linear,
    _draw_linear,
    batched=False,
    rebuilds=False,
)
