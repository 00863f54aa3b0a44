"""The figure of the selection of supernovae."""

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import hbm_jax as hbm
from hbm_jax.models import Supernova

RELATION = {
    "Om0": 0.3, "M0": -19.05, "alpha": 0.14, "beta": 3.1, "sigma_int": 0.11, "x1_mean": 0.0, "x1_std": 1.0,
    "c_mean": 0.0, "c_std": 0.08,
}  # fmt: skip


@pytest.mark.parametrize("text", ["m_b < 23.5 +- 0.3", "m_b efficiency 21:1 23:0.6 24:0.001", "survey"])
def test_a_selection_of_supernovae_shows_what_it_leaves_out(text):
    """The detected fraction of the supernovae in a bin of magnitude is the detection probability there."""
    data = hbm.data.load_jla().subset(np.arange(0, 740, 5))
    own = {"m_lim_width": 0.3} if text == "survey" else {}
    model = Supernova(selection=text, mass_step=False, priors=RELATION | own)
    limits = np.array([23.0, 23.5, 18.0, 30.0])[: len(data.survey_counts)]
    posterior = {"m_lim": xr.DataArray(limits[None, None], dims=("chain", "draw", "survey"))} if own else {}
    fit = SimpleNamespace(program=model, data=data, args=(data,), posterior=posterior, blinding=None)
    left, right, *efficiency = hbm.plotting.selected_supernovae(fit).axes
    assert len(efficiency) == ("efficiency" in text)
    missing, detected, measured = left.lines
    assert len(measured.get_xdata()) == len(data)
    assert 0.05 < len(missing.get_xdata()) / (len(missing.get_xdata()) + len(detected.get_xdata())) < 0.6
    if own:
        return
    every, found = (patch.get_xy() for patch in right.patches[:2])
    full = every[:, 1] > 0.3 * every[:, 1].max()
    at = every[full, 0]
    expected = stats.norm.cdf((23.5 - at) / 0.3) if "+-" in text else np.interp(at, (21, 23, 24), (1, 0.6, 0.001))
    assert np.abs(found[full, 1] / every[full, 1] - expected).mean() < 0.1
    with pytest.raises(ValueError, match="expected a fit with a selection, and separate observations"):
        hbm.plotting.selected_supernovae(SimpleNamespace(program=Supernova(), data=data, args=(data,), posterior={}))
