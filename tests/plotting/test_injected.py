"""Figures of selections by injections."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

sys.path.append(str(Path(__file__).parents[1] / "models"))
from test_injections_everywhere import (
    DRAWN,
    POPULATION,
    case,
    efficiency,
    found_bursts,
    injected_bursts,
    injections,
    moments_of_intervals,
    several,
)  # fmt: skip

import hbm_jax as hbm
from hbm_jax.models import Afterglow, Golenetskii, Injections, Supernova


@pytest.mark.long
@pytest.mark.parametrize("kind", list(DRAWN), ids=lambda kind: kind.__name__)
def test_figures_of_injections_show_what_is_left_out(kind, tmp_path):
    """The share of detected objects in a bin of true flux is the efficiency there, but for errors of the data."""
    options, data, p = case(kind)
    p = {name: value for name, value in p.items() if name[0] != "_"}
    model = kind(selection=Injections(injections(kind, 6000)), **(options | {"priors": options.get("priors", {}) | p}))
    names = DRAWN[kind] if kind is Afterglow else ()
    medians = {name: (("chain", "draw", "source"), np.full((1, 3, len(data)), p[f"{name}_mean"])) for name in names}
    fit = SimpleNamespace(program=model, data=data, args=(data,), posterior=xr.Dataset(medians), blinding=None)
    draw = {Golenetskii: "selected_bursts", Supernova: "selected_supernovae", Afterglow: "selected_afterglows"}[kind]
    figure = getattr(hbm.plotting, draw)(fit)
    figure.savefig(tmp_path / "figure.png", dpi=120)
    left, right = figure.axes
    others, detected = left.lines[:2]
    assert others.get_label() == "simulated, all"
    assert len(detected.get_xdata()) < len(others.get_xdata())
    every, found = (patch.get_xy() for patch in right.patches[:2])
    full = every[:, 1] > 0.3 * every[:, 1].max()
    name = "m_b" if kind is Supernova else "log10_flux"
    share = found[full, 1] / every[full, 1]
    assert np.abs(share - efficiency(kind, {name: every[full, 0]})).mean() < 0.1


@pytest.mark.long
def test_figures_of_injected_bursts(tmp_path):
    """Of bursts whose intervals scatter nearly as much as those of the injections."""
    population = POPULATION | {"intrinsic_scatter": 0.6, "log10_E_peak_scatter": 0.4}
    model = Golenetskii(correlated=True, selection=Injections(injected_bursts(6000)), priors=population)
    fit = SimpleNamespace(program=model, data=several(), args=(several(),), posterior={}, blinding=None)
    figure = hbm.plotting.selected_bursts(fit)
    figure.savefig(tmp_path / "figure.png", dpi=120)
    left, right = figure.axes
    assert len(left.lines[2].get_xdata()) == 3
    assert right.get_ylabel() == "bursts"
    num = [len(line.get_xdata()) for line in left.lines[:2]]
    rng, kept = np.random.default_rng(3), []
    for z, intervals in zip([1.3, 0.5, 2.0], (2, 3, 2), strict=True):
        for _ in range(300):
            mean, covariance, of_fluxes = moments_of_intervals(population, z, intervals)
            flux = rng.multivariate_normal(*of_fluxes(rng.multivariate_normal(mean, covariance)))
            kept.append(found_bursts((10.0**flux).sum()))
    assert num[1] / num[0] == pytest.approx(np.mean(kept), abs=0.08)
