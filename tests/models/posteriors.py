"""Posteriors of posteriordb that a normal regression covers: data, formula and priors; and their exact form."""

import gzip
import json
from dataclasses import dataclass, field

import numpy as np
from scipy import stats
from scipy.special import ndtr

from hbm_jax.data import RegressionData
from hbm_jax.models import Regression

FOLDER = "hierarchical/posteriordb"
FLAT = {"intercept": "flat", "coef": "flat", "sigma": "flat"}
CAUCHY = FLAT | {"sigma": "HalfCauchy(2.5)"}
QUANTILES = {"q05": 0.05, "q16": 0.16, "q50": 0.5, "q84": 0.84, "q95": 0.95}


@dataclass(frozen=True)
class Posterior:
    file: str
    formula: str
    priors: dict = field(default_factory=lambda: FLAT)


KID, WORK, EARN, BUSH = "kidiq.json", "kidiq_with_mom_work.json", "earnings.json", "mesquite.json"
SIZES = "log(diam1 * diam2 * canopy_height)", "log(diam1 * diam2)", "log(diam1 / diam2)"
VOLUME, AREA, SHAPE = SIZES
LINEAR = {
    "kidiq-kidscore_momhs": Posterior(KID, "kid_score ~ mom_hs", CAUCHY),
    "kidiq-kidscore_momiq": Posterior(KID, "kid_score ~ mom_iq", CAUCHY),
    "kidiq-kidscore_momhsiq": Posterior(KID, "kid_score ~ mom_hs + mom_iq", CAUCHY),
    "kidiq-kidscore_interaction": Posterior(KID, "kid_score ~ mom_hs * mom_iq", CAUCHY),
    "kidiq_with_mom_work-kidscore_interaction_c": Posterior(WORK, "kid_score ~ center(mom_hs) * center(mom_iq)"),
    "kidiq_with_mom_work-kidscore_interaction_c2": Posterior(WORK, "kid_score ~ I(mom_hs - 0.5) * I(mom_iq - 100)"),
    "kidiq_with_mom_work-kidscore_interaction_z": Posterior(WORK, "kid_score ~ z_hs * z_iq"),
    "kidiq_with_mom_work-kidscore_mom_work": Posterior(WORK, "kid_score ~ C(mom_work)"),
    "earnings-earn_height": Posterior(EARN, "earn ~ height"),
    "earnings-log10earn_height": Posterior(EARN, "log10(earn) ~ height"),
    "earnings-logearn_height": Posterior(EARN, "log(earn) ~ height"),
    "earnings-logearn_height_male": Posterior(EARN, "log(earn) ~ height + male"),
    "earnings-logearn_interaction": Posterior(EARN, "log(earn) ~ height * male"),
    "earnings-logearn_interaction_z": Posterior(EARN, "log(earn) ~ scale(height) * male"),
    "earnings-logearn_logheight_male": Posterior(EARN, "log(earn) ~ log(height) + male"),
    "mesquite-mesquite": Posterior(BUSH, "weight ~ diam1 + diam2 + canopy_height + total_height + density + group"),
    "mesquite-logmesquite": Posterior(
        BUSH,
        "log(weight) ~ log(diam1) + log(diam2) + log(canopy_height) + log(total_height) + log(density) + group",
    ),
    "mesquite-logmesquite_logva": Posterior(BUSH, f"log(weight) ~ {VOLUME} + {AREA} + group"),
    "mesquite-logmesquite_logvas": Posterior(
        BUSH, f"log(weight) ~ {VOLUME} + {AREA} + {SHAPE} + log(total_height) + log(density) + group"
    ),
    "mesquite-logmesquite_logvash": Posterior(
        BUSH, f"log(weight) ~ {VOLUME} + {AREA} + {SHAPE} + log(total_height) + group"
    ),
    "mesquite-logmesquite_logvolume": Posterior(BUSH, f"log(weight) ~ {VOLUME}"),
    "kilpisjarvi_mod-kilpisjarvi": Posterior(
        "kilpisjarvi_mod.json",
        "y ~ x",
        {
            "intercept": "Normal(9.31290322580645, 100)",
            "coef": "Normal(0, 0.0333333333333333)",
            "sigma": "flat",
        },
    ),
    "sblri-blr": Posterior(
        "sblri.json", "y ~ 0 + X1 + X2 + X3 + X4 + X5", {"coef": "Normal(0, 10)", "sigma": "HalfNormal(10)"}
    ),
    "sblrc-blr": Posterior(
        "sblrc.json", "y ~ 0 + X1 + X2 + X3 + X4 + X5", {"coef": "Normal(0, 10)", "sigma": "HalfNormal(10)"}
    ),
    "nes2000-nes": Posterior(
        "nes2000.json", "partyid7 ~ real_ideo + race_adj + C(age_discrete) + educ1 + gender + income"
    ),
    "arK-arK": Posterior(
        "arK.json",
        "now ~ before1 + before2 + before3 + before4 + before5",
        {"intercept": "Normal(0, 10)", "coef": "Normal(0, 10)", "sigma": "HalfCauchy(2.5)"},
    ),
}


def read_json(path):
    """Read a JSON file, compressed or not."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
        return json.load(file)


def columns_of(shared_data, file):
    """Columns of a data set of posteriordb, with some that its models compute."""
    stored = read_json(shared_data(f"{FOLDER}/{file}"))
    if file == "arK.json":
        y, k = np.array(stored["y"]), stored["K"]
        return {"now": y[k:]} | {f"before{lag}": y[k - lag : -lag] for lag in range(1, k + 1)}
    columns = {key: np.array(value) for key, value in stored.items() if isinstance(value, list)}
    if "X" in columns:
        columns |= {f"X{k + 1}": column for k, column in enumerate(columns.pop("X").T)}
    if file == WORK:
        for short in ("hs", "iq"):
            x = columns[f"mom_{short}"]
            columns[f"z_{short}"] = (x - x.mean()) / (2.0 * x.std(ddof=1))
    return columns


def model_and_data(shared_data, name):
    """Model, data and reference summary of a posterior; the summary in the order of coefficients, sigma last."""
    posterior = LINEAR[name]
    data = RegressionData.from_columns(columns_of(shared_data, posterior.file), posterior.formula)
    reference = read_json(shared_data(f"{FOLDER}/reference_summary.json"))[name]["parameters"]
    assert list(reference)[-1] == "sigma"
    assert len(reference) == len(data.terms) + 1
    return Regression(priors=posterior.priors), data, list(reference.values())


class Exact:
    """The posterior of a normal linear model, by linear algebra given sigma, and by quadrature over it.

    Independent of hbm_jax but for the design matrix.
    """

    def __init__(self, y, X, priors, terms, points=801):
        self.y, self.X, self.priors = y, X, priors
        prior_mean, precision = np.zeros(X.shape[1]), np.zeros(X.shape[1])
        for k, term in enumerate(terms):
            text = priors["intercept" if term == "Intercept" else "coef"]
            if text != "flat":
                mean, std = (float(part) for part in text[len("Normal(") : -1].split(","))
                prior_mean[k], precision[k] = mean, std**-2
        self.prior_mean, self.precision = prior_mean, precision
        best = np.linalg.lstsq(X, y, rcond=None)[0]
        size = np.sqrt(((y - X @ best) ** 2).mean())
        self.sigma = size * np.geomspace(0.4, 3.0, points)
        log, self.means, self.covariances = self._given(self.sigma)
        log = log + np.log(self.sigma)
        self.weights = np.exp(log - log.max())
        self.weights /= self.weights.sum()
        assert max(self.weights[0], self.weights[-1]) < 1e-8

    def log_sigma_prior(self, sigma):
        text = self.priors["sigma"]
        if text == "flat":
            return 0.0
        scale = float(text.partition("(")[2][:-1])
        return (stats.halfcauchy if "Cauchy" in text else stats.halfnorm).logpdf(sigma, scale=scale)

    def _given(self, sigma):
        """Log density of each sigma, and mean and covariance of the coefficients given it."""
        scale = np.sqrt((self.X**2).sum(axis=0))
        X, prior, prior_mean = self.X / scale, self.precision / scale**2, self.prior_mean * scale
        normal = X.T @ X / sigma[:, None, None] ** 2 + np.diag(prior)
        covariance = np.linalg.inv(normal)
        mean = (covariance @ (X.T @ self.y / sigma[:, None] ** 2 + prior * prior_mean)[..., None])[..., 0]
        left = ((self.y - mean @ X.T) ** 2).sum(axis=1) / sigma**2 + (prior * (mean - prior_mean) ** 2).sum(axis=1)
        log = self.log_sigma_prior(sigma) - len(self.y) * np.log(sigma) - 0.5 * left
        log -= 0.5 * np.linalg.slogdet(normal)[1]
        return log, mean / scale, covariance / np.outer(scale, scale)

    def log_joint(self, b, sigma):
        log = self.log_sigma_prior(sigma) - len(self.y) * np.log(sigma)
        log -= 0.5 * ((self.y - self.X @ b) ** 2).sum() / sigma**2
        return log - 0.5 * (self.precision * (b - self.prior_mean) ** 2).sum()

    def mean(self, k):
        """Of coefficient k, or of sigma, which is last."""
        return float(self.weights @ (self.sigma if k == self.X.shape[1] else self.means[:, k]))

    def cdf(self, k, at):
        """Share of the posterior below values ``at``."""
        if k == self.X.shape[1]:
            middle = np.sqrt(self.sigma[1:] * self.sigma[:-1])
            edges = np.concatenate([self.sigma[:1], middle, self.sigma[-1:]])
            return np.interp(np.log(at), np.log(edges), np.concatenate([[0.0], np.cumsum(self.weights)]))
        std = np.sqrt(self.covariances[:, k, k])
        return self.weights @ ndtr((np.asarray(at) - self.means[:, k, None]) / std[:, None])

    def draws(self, num, seed):
        rng = np.random.default_rng(seed)
        rows = rng.choice(len(self.sigma), num, p=self.weights)
        return [(rng.multivariate_normal(self.means[i], self.covariances[i]), self.sigma[i]) for i in rows]
