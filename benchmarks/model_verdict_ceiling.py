"""Bursts lost by a limit of their peak flux: samples that a test which knows the selection tells from others.

    python benchmarks/model_verdict_ceiling.py [--state runs/model_verdict_rates] [--num 40] [--null 200]

The most powerful test of this misfit compares the largest likelihoods of the model with the selection and without, at
the true limit, or at the flux of the faintest burst if the limit is unknown. Slopes are integrated by quadrature. The
distribution of their ratio without selection is that of samples of the model at the mean of the parameters that were
fitted to the samples with it, so that both look alike. Beside it: the same samples by `hbm_jax.check_model`, from the
results of `model_verdict_rates`.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from model_verdict_systems import golenetskii, program_draws
from numpyro import handlers
from scipy.optimize import minimize

import hbm_jax as hbm

NODES = 12
LEVEL = 0.05
LARGEST = 1e6  # minus log likelihood where it is not finite
HERE = Path(__file__).resolve().parent
POSITIVE = ("gamma_std", "log10_N_std", "intrinsic_scatter", "log10_E_peak_std", "log10_E_peak_scatter")


def likelihood(system, selected: bool):
    """Return a function (unconstrained parameters, bound data, limit) -> minus the log likelihood and its gradient."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    log_weights = np.log(weights) + 0.5 * nodes**2
    names = list(system.truth)

    selection = "log10_peak_flux > log10_peak_flux_limit" if selected else "none"
    model = dataclasses.replace(system.model, selection=selection)

    def minus_log(position, bound, limit):
        bound = dataclasses.replace(bound, log10_peak_flux_limit=jnp.full(len(system.design), limit))
        latents = {n: jnp.exp(x) if n in POSITIVE else x for n, x in zip(names, position, strict=True)}

        def at_node(node):
            fixed = latents | {"_gamma": jnp.full(len(system.design), node)}
            seeded = handlers.substitute(handlers.seed(model, jax.random.key(0)), data=fixed)
            trace = handlers.trace(seeded).get_trace(bound)
            return sum(trace[n]["fn"].log_prob(trace[n]["value"]) for n in ("_gamma", "observed"))

        by_node = jax.vmap(at_node)(nodes) + log_weights[:, None]
        return -jax.scipy.special.logsumexp(by_node, axis=0).sum()

    return jax.jit(jax.value_and_grad(minus_log))


def largest(function, start, bound, limit) -> tuple[float, np.ndarray]:
    """Return the largest log likelihood and its unconstrained parameters."""

    def finite(position):
        value, gradient = function(position, bound, limit)
        return (float(value), np.asarray(gradient)) if np.isfinite(value) else (LARGEST, np.zeros(len(position)))

    bounds = [(-6.0, 3.0) if name in POSITIVE else (None, None) for name in golenetskii_names]
    found = minimize(finite, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return -found.fun, found.x


golenetskii_names: list[str] = []


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=HERE.parent / "runs" / "model_verdict_rates")
    parser.add_argument("--num", type=int, default=40)
    parser.add_argument("--null", type=int, default=200)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "model_verdict_ceiling.txt")
    options = parser.parse_args()
    hbm.inference.use_compilation_cache()
    system = golenetskii()
    golenetskii_names.extend(system.truth)
    strength = system.strengths["whole"]
    limit = system.planted(None, "limit", strength)
    start = np.array([np.log(x) if n in POSITIVE else x for n, x in system.truth.items()])
    with jax.enable_x64(True):
        without, with_limit = likelihood(system, False), likelihood(system, True)

        def ratios(values):
            """Return the logarithm of the ratio at the known limit and at that of the faintest burst, and the fit."""
            data = dataclasses.replace(system.design, log10_E_peak=values[..., 0], log10_flux=values[..., 1])
            bound = system.model.bind(data)
            base, fitted = largest(without, start, bound, 0.0)
            faintest = values[..., 1].max(axis=1).min()
            known = largest(with_limit, start, bound, limit)[0] - base if faintest > limit else -np.inf
            return known, largest(with_limit, start, bound, faintest - 1e-6)[0] - base, fitted

        stored = sorted(options.state.glob(f"golenetskii whole {strength:.4g} *.npz"))
        samples = np.concatenate([np.load(path)["observed"] for path in stored])[: options.num]
        of_samples = [ratios(values) for values in samples]
        mean = np.mean([fitted for _, _, fitted in of_samples], axis=0)
        fitted = {n: float(np.exp(x) if n in POSITIVE else x) for n, x in zip(system.truth, mean, strict=True)}
        draw = program_draws(system.model, system.design, "observed", fitted)
        of_others = [ratios(values) for values in draw(np.random.default_rng(4), options.null)]
    shift = " ".join(f"{name} {value:.3g} ({system.truth[name]:.3g})" for name, value in fitted.items())
    lines = [
        f"{len(samples)} samples of 20 bursts whose brightest interval is above a limit, "
        f"{len(of_others)} of the same lines without",
        f"fitted without the selection (true): {shift}",
        f"found at a level of {LEVEL}:",
    ]
    for k, name in enumerate(("likelihood ratio, limit known", "likelihood ratio, limit unknown")):
        critical = np.quantile([row[k] for row in of_others], 1.0 - LEVEL, method="higher")
        found = sum(row[k] > critical for row in of_samples)
        lines.append(f"  {name:<34} {found} of {len(samples)}")
    p = [result["p"] for path in stored for result in json.loads(path.with_suffix(".json").read_text())]
    lines.append(f"  {'hbm_jax.check_model':<34} {sum(x < LEVEL for x in p[: options.num])} of {len(samples)}")
    options.output.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
