"""The classic models: usable at default settings, and where the textbooks and long runs of our own say."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

import hbm_jax as hbm

REPOSITORY = Path(__file__).resolve().parents[2]
LONG = json.loads((Path(__file__).parent / "gallery_long_runs.json").read_text())
# Published means of parameters and how far priors and rounding may move them. BUGS examples (volumes 1 and 2) but for
# radon and wells: Gelman & Hill 2007, sections 12.3, 12.6, 13.1 and 5.4.
PUBLISHED = {
    "seeds": {
        "coef[Intercept]": (-0.55, 0.1), "coef[x1]": (0.08, 0.15), "coef[x2]": (1.35, 0.15),
        "coef[x1:x2]": (-0.82, 0.2),
    },
    "surgical": {"coef[Intercept]": (-2.55, 0.05), "hospital_sd": (0.40, 0.1)},
    "rats": {"coef[Intercept]": (106.6, 1.5), "coef[day]": (6.185, 0.03), "sigma": (6.09, 0.15)},
    "dugongs": {"alpha": (2.65, 0.04), "beta": (0.97, 0.03), "gamma": (0.86, 0.02), "sigma": (0.099, 0.005)},
    "wells, logit": {
        "coef[Intercept]": (-0.15, 0.03), "coef[I(dist / 100)]": (-0.58, 0.05), "coef[arsenic]": (0.56, 0.03),
        "coef[I(dist / 100):arsenic]": (-0.18, 0.04),
    },
    "radon, varying intercept": {
        "coef[Intercept]": (1.46, 0.02), "coef[floor]": (-0.69, 0.02), "county_sd": (0.33, 0.02), "sigma": (0.76, 0.01),
    },
    "radon, group predictor": {
        "coef[Intercept]": (1.47, 0.02), "coef[floor]": (-0.67, 0.02), "coef[log_uranium]": (0.72, 0.02),
    },
    "radon, varying slope": {"coef[Intercept]": (1.46, 0.02), "coef[floor]": (-0.68, 0.03), "sigma": (0.75, 0.01)},
}  # fmt: skip


def gallery():
    spec = importlib.util.spec_from_file_location("gallery", REPOSITORY / "benchmarks" / "gallery.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.GALLERY


GALLERY = gallery()


def test_published_values_and_long_runs_agree():
    """The long runs are where the books say, but for seeds' spread under other priors."""
    for name, parameters in PUBLISHED.items():
        assert name in GALLERY
        if name not in LONG["models"]:
            continue
        for label, (value, within) in parameters.items():
            found = LONG["models"][name][label]
            assert found["ess_bulk"] >= LONG["until"]
            assert abs(found["mean"] - value) < within, (name, label)


@pytest.mark.slow
@pytest.mark.parametrize("name", GALLERY)
def test_usable_at_default_settings(name):
    case = GALLERY[name]()
    if case is None:
        reason = "its data are not bundled, and not found beside the repository"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    fit = hbm.sample(*case, seed=1, progress=False)
    assert fit.verdict.usable, str(fit.verdict)
    assert int(fit.tree["sample_stats"]["diverging"].sum()) == 0
    table = fit.summary(max_size=6)
    for label, (value, within) in PUBLISHED.get(name, {}).items():
        assert abs(table.loc[label, "mean"] - value) < within, label
    for label, known in LONG["models"].get(name, {}).items():
        row = table.loc[label]
        assert row["ess_bulk"] > 400
        error = np.hypot(row["sd"] / np.sqrt(row["ess_bulk"]), known["sd"] / np.sqrt(known["ess_bulk"]))
        assert abs(row["mean"] - known["mean"]) < 4.5 * error, label
        for column, key in (("lower_68", "q16"), ("median", "q50"), ("upper_68", "q84")):
            # Quantiles within a standard deviation of the middle are no worse known than twice the mean.
            assert abs(row[column] - known[key]) < 2.0 * 4.5 * error, (label, key)
