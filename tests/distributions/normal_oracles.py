"""Independent log densities and draws in NumPy and SciPy: one object, one value, dense formulae."""

import numpy as np
from scipy import special, stats


def log_normal(x, mean, covariance):
    """Log density of a normal; leading dimensions broadcast."""
    residual = np.asarray(x - mean, float)
    covariance = np.broadcast_to(covariance, (*residual.shape, residual.shape[-1]))
    chi2 = (residual * np.linalg.solve(covariance, residual[..., None])[..., 0]).sum(-1)
    return -0.5 * (chi2 + np.linalg.slogdet(covariance)[1] + residual.shape[-1] * np.log(2.0 * np.pi))


def draw_normal(rng, mean, covariance, num):
    """Draws (num, n); the covariance may be singular."""
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    return mean + rng.normal(size=(num, len(values))) @ root.T


def covariance_of(rng, n, least=0.3):
    """Return some covariance."""
    root = rng.normal(size=(n, n))
    return root @ root.T / n + least * np.eye(n)


def triangle_of(rng, n):
    """Return some lower triangle with a positive diagonal."""
    triangle = np.tril(rng.normal(size=(n, n)))
    return np.where(np.eye(n), np.abs(triangle) + 0.2, triangle)


# Gaussian latents seen through a loading matrix.


def linear_gaussian(p):
    """Mean and covariance of the data."""
    a, s = p.get("loading", np.eye(len(p["offset"]))), p["latent_scale_tril"]
    return p["offset"] + a @ p["latent_loc"], a @ s @ s.T @ a.T + p["noise_covariance"]


# Values of a group about a true value.


def grouped_normal(p):
    """Mean and covariance of all used values of a group in one vector."""
    used = np.flatnonzero(p["used"])
    num, size = len(used), len(p["loc"])
    covariance = np.kron(np.ones((num, num)), p["scale_tril"] @ p["scale_tril"].T)
    for m, place in enumerate(used):
        covariance[m * size : (m + 1) * size, m * size : (m + 1) * size] += p["noise"][place]
    return np.tile(p["loc"], num), covariance


# Points on lines.


def measured_pair(x_scale, slope, scatter, errors):
    """Covariance of the measured (x, y) of one point."""
    true = x_scale**2 * np.array([[1.0, slope], [slope, slope**2]]) + np.diag([0.0, scatter**2])
    xx, xy, yy = errors
    return true + np.array([[xx, xy], [xy, yy]])


def linear_relation(p):
    """Mean and covariance of the measured (x, y) without the limit."""
    mean = np.array([p["x_loc"], p["intercept"] + p["slope"] * p["x_loc"]])
    return mean, measured_pair(p["x_scale"], p["slope"], p["scatter"], p["errors"])


def log_linear_relation(p, value):
    mean, covariance = linear_relation(p)
    log = log_normal(value, mean, covariance)
    if "limit" not in p:
        return log
    if value[1] < p["limit"]:
        return -np.inf
    return log - stats.norm.logsf(p["limit"], mean[1], np.sqrt(covariance[1, 1]))


def draw_linear_relation(rng, p, num):
    """By rejection: what is below the limit is thrown away."""
    mean, covariance = linear_relation(p)
    kept = np.zeros((0, 2))
    while len(kept) < num:
        drawn = draw_normal(rng, mean, covariance, 2 * num)
        kept = np.concatenate([kept, drawn[drawn[:, 1] >= p.get("limit", -np.inf)]])
    return kept[:num]


def grouped_relation(p):
    """Mean and covariance of all measured numbers of the used points, and their response to (m, c) of the group."""
    used = np.flatnonzero(p["used"])
    response = np.tile([[1.0, 0.0], [p["slope"], 1.0]], (len(used), 1))
    known = np.stack([p["x_shift"], p["intercept"]], axis=-1)[used].ravel()
    mean = known + response @ [p["group_loc"], p["offset_loc"]]
    prior = np.diag([p.get("group_scale", 0.0) ** 2, p["offset_scale"] ** 2])
    covariance = response @ prior @ response.T
    for j, place in enumerate(used):
        pair = measured_pair(p["x_scale"], p["slope"], p["scatter"], p["errors"][place])
        covariance[2 * j : 2 * j + 2, 2 * j : 2 * j + 2] += pair
    return mean, covariance, response, prior


def of_used(moments):
    """Log density and draws of (M, D) values, of which only the used ones have the moments that are given in a row."""

    def log_density(p, value):
        mean, covariance, *_ = moments(p)
        return log_normal(value[p["used"]].ravel(), mean, covariance)

    def draw(rng, p, num):
        mean, covariance, *_ = moments(p)
        drawn = draw_normal(rng, mean, covariance, num)
        used = p["used"]
        values = np.zeros((num, len(used), len(mean) // used.sum()))
        values[:, used] = drawn.reshape(num, used.sum(), -1)
        return values

    return log_density, draw


# Mixtures of points with limits, outliers and Student's t.


def point_components(p, scatter):
    """Shares, means and measured covariances of the components of the population, for a scatter of y."""
    slope = p["slope"]
    design = np.vstack([np.eye(len(slope)), slope])
    shift = np.append(np.zeros(len(slope)), p["intercept"])
    last = np.append(np.zeros(len(slope)), 1.0)
    for log_weight, loc, covariance in zip(p["log_weights"], p["x_loc"], p["x_cov"], strict=True):
        true = design @ covariance @ design.T + scatter**2 * np.outer(last, last)
        yield np.exp(log_weight), design @ loc + shift, true + p["errors"]


def log_points(p, value):
    """Normals, of another scatter for outliers; Student's t by a trapezoidal rule over the distance from the line."""
    if "nu" in p:
        u = np.linspace(-7.5, 7.5, 3001)  # distances sinh(u), in units of the scale
        away = p["scatter"] * np.sinh(u)
        weight = stats.t.pdf(np.sinh(u), p["nu"]) * np.cosh(u)
        moved = value - away[:, None] * np.eye(len(value))[-1]
        total = sum(w * np.exp(log_normal(moved, m, c)) for w, m, c in point_components(p, 0.0))
        return np.log(np.trapezoid(weight * total, u))
    share = p.get("outlier_share", 0.0)
    wide = np.hypot(p["scatter"], p.get("outlier_scale", 0.0))
    total = 0.0
    for part, scatter in ((1.0 - share, p["scatter"]), (share, wide)):
        for weight, mean, covariance in point_components(p, scatter):
            total += part * weight * np.exp(_log_limited(p, value, mean, covariance))
    return np.log(total)


def _log_limited(p, value, mean, covariance):
    if "at" not in p:
        return log_normal(value, mean, covariance)
    which = _limited(p, len(value))
    if not p["side"] * value[which] <= p["side"] * p["at"]:
        return log_normal(value, mean, covariance)
    rest = np.delete(np.arange(len(value)), which)
    gain = np.linalg.solve(covariance[np.ix_(rest, rest)], covariance[rest, which])
    middle = mean[which] + gain @ (value - mean)[rest]
    spread = np.sqrt(covariance[which, which] - gain @ covariance[rest, which])
    beyond = stats.norm.logcdf(p["side"] * (value[which] - middle) / spread)
    return log_normal(value[rest], mean[rest], covariance[np.ix_(rest, rest)]) + beyond


def _limited(p, size):
    """Which coordinate has the limit."""
    return int(np.argmax(p["order"][-1])) if "order" in p else size - 1


def draw_points(rng, p, num):
    """Truth first, then errors, then limits."""
    size = len(p["slope"]) + 1
    which = rng.choice(len(p["log_weights"]), num, p=np.exp(p["log_weights"]))
    x = np.zeros((num, size - 1))
    for k, (loc, covariance) in enumerate(zip(p["x_loc"], p["x_cov"], strict=True)):
        x[which == k] = draw_normal(rng, loc, covariance, (which == k).sum())
    if "nu" in p:
        away = p["scatter"] * rng.standard_t(p["nu"], num)
    else:
        bad = rng.random(num) < p.get("outlier_share", 0.0)
        away = rng.normal(size=num) * np.where(bad, np.hypot(p["scatter"], p.get("outlier_scale", 0.0)), p["scatter"])
    true = np.column_stack([x, p["intercept"] + x @ p["slope"] + away])
    value = true + draw_normal(rng, np.zeros(size), p["errors"], num)
    if "at" in p:
        column = value[:, _limited(p, size)]
        column[p["side"] * column <= p["side"] * p["at"]] = p["at"]
    return value


# Mixtures with a positive latent and a selection.

NODES, WEIGHTS = np.polynomial.legendre.leggauss(20)


def half_line_rule(p, k, reach=16.0, panels=40):
    """Positive numbers t and the weights of their distribution, proportional to exp(-rate t - precision t^2 / 2)."""
    if "rate" not in p:
        return np.zeros(1), np.ones(1)
    edges = np.linspace(0.0, reach, panels + 1)
    half = 0.5 * (edges[1] - edges[0])
    t = (edges[:-1, None] + half * (1.0 + NODES)).ravel()
    rate, precision = p["rate"][k], p["precision"][k] if "precision" in p else 0.0
    weight = np.exp(-rate * t - 0.5 * precision * t**2) * np.tile(half * WEIGHTS, panels)
    return t, weight / weight.sum()


def _mixture_components(p):
    """Log weight, true mean for each t, observed covariance, and weights of t."""
    for k in range(len(p["log_weights"])):
        t, weight = half_line_rule(p, k)
        direction = p["direction"][k] if "direction" in p else np.zeros(len(p["offset"]))
        scale = p["scale_tril"][k]
        mean = p["offset"] + p["loc"][k] + t[:, None] * direction
        if "second_rate" in p:  # another exponential latent
            other, other_weight = half_line_rule({"rate": p["second_rate"]}, k, panels=10)
            mean = (mean[:, None] + other[:, None] * p["second_direction"][k]).reshape(-1, len(scale))
            weight = np.outer(weight, other_weight).ravel()
        yield np.exp(p["log_weights"][k]), mean, scale @ scale.T + p["noise_covariance"], weight


def log_detected(p):
    """Log of the share of objects that are detected."""
    total = 0.0
    for share, mean, covariance, weight in _mixture_components(p):
        room = p["limit"] - mean @ p["slope"]
        spread = np.sqrt(p["width"] ** 2 + p["slope"] @ covariance @ p["slope"])
        total += share * weight @ special.ndtr(room / spread)
    return np.log(total)


def log_mixture(p, value):
    total = sum(share * weight @ np.exp(log_normal(value, m, c)) for share, m, c, weight in _mixture_components(p))
    if "limit" not in p:
        return np.log(total)
    return np.log(total) + stats.norm.logcdf((p["limit"] - p["slope"] @ value) / p["width"]) - log_detected(p)


def draw_mixture(rng, p, num):
    """Truth, errors, and the detection by a threshold that scatters."""
    kept = np.zeros((0, len(p["offset"])))
    while len(kept) < num:
        truth = draw_mixture_truth(rng, p, 2 * num)[1]
        value = p["offset"] + truth + draw_normal(rng, np.zeros(truth.shape[1]), p["noise_covariance"], 2 * num)
        if "limit" in p:
            value = value[value @ p["slope"] + p["width"] * rng.normal(size=len(value)) < p["limit"]]
        kept = np.concatenate([kept, value])
    return kept[:num]


def draw_mixture_truth(rng, p, num):
    """Components and true values."""
    which = rng.choice(len(p["log_weights"]), num, p=np.exp(p["log_weights"]))
    truth = np.zeros((num, len(p["offset"])))
    for k in range(len(p["log_weights"])):
        here = which == k
        t = draw_half_line(rng, p, k, here.sum())
        direction = p["direction"][k] if "direction" in p else 0.0
        scale = p["scale_tril"][k]
        if "second_rate" in p:
            other = rng.exponential(1.0 / p["second_rate"][k], here.sum())
            truth[here] += other[:, None] * p["second_direction"][k]
        truth[here] += p["loc"][k] + t[:, None] * direction + rng.normal(size=(here.sum(), len(scale))) @ scale.T
    return which, truth


def draw_half_line(rng, p, k, num):
    if "rate" not in p:
        return np.zeros(num)
    if "precision" not in p:
        return rng.exponential(1.0 / p["rate"][k], num)
    mean, std = -p["rate"][k] / p["precision"][k], p["precision"][k] ** -0.5
    return stats.truncnorm(-mean / std, np.inf, mean, std).rvs(num, random_state=rng)
