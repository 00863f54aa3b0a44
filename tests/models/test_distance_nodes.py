"""Free distances at nodes in redshift: the spline, the model, and the distance-level sample of a posterior."""

import jax
import numpy as np
import pytest
import xarray as xr
from models.densities import LogDensity
from models.test_supernova import FEW, TRUTH
from scipy import stats
from scipy.interpolate import CubicSpline

import hbm_jax
from hbm_jax.cosmology import Cosmology, distmod
from hbm_jax.cosmology.distance_nodes import UNION3_NODES, DistanceNodes
from hbm_jax.data import load_jla, read_distance_moduli
from hbm_jax.inference.blinding.blinding import Blinding
from hbm_jax.models import HubbleDiagram, Supernova
from hbm_jax.models.expansion import distance_nodes, named
from hbm_jax.validation import DataWarning

Z = np.array([0.001, 0.02, 0.1, 0.13, 0.5, 0.77, 1.5, 2.26226, 3.0])


def test_the_spline_is_natural_and_linear_beyond_the_nodes():
    values = np.sin(3.0 * np.asarray(UNION3_NODES))
    spline = CubicSpline(UNION3_NODES, values, bc_type="natural")
    inside = (UNION3_NODES[0] <= Z) & (UNION3_NODES[-1] >= Z)
    with jax.enable_x64(True):
        found, slopes = jax.jit(jax.vmap(jax.value_and_grad(lambda z: DistanceNodes().spline(z, values))))(Z)
    np.testing.assert_allclose(found[inside], spline(Z[inside]), atol=1e-13)
    for end, beyond in ((0, UNION3_NODES[0] > Z), (-1, UNION3_NODES[-1] < Z)):
        expected = values[end] + spline(UNION3_NODES[end], 1) * (Z[beyond] - UNION3_NODES[end])
        np.testing.assert_allclose(found[beyond], expected, atol=1e-12)
    np.testing.assert_allclose(slopes[inside], spline(Z[inside], 1), atol=1e-11)


def test_a_cosmology_is_recovered_from_its_values_at_the_nodes():
    """Moduli of another universe, given at the nodes: the spline between them is exact to 1e-4 mag."""
    expansion, other = named("nodes"), Cosmology.flat(H0=70.0, Om0=0.4, w0=-0.8)
    nodes = np.asarray(UNION3_NODES)
    with jax.enable_x64(True):
        z = np.linspace(0.05, 1.3, 50)

        @jax.jit
        def both():
            dmu = distmod(nodes, other) - distmod(nodes, Cosmology.flat(H0=70.0, Om0=0.3))
            distances = expansion.build({"H0": 70.0} | dict(zip(expansion.parameters, dmu, strict=True)))
            return distmod(z, distances), distmod(z, other)

        np.testing.assert_allclose(*both(), atol=1e-4)


def test_the_model_has_free_moduli_and_a_fixed_magnitude():
    few = FEW.subset(range(6))
    model = Supernova(cosmology="nodes(0.1, 0.4, 0.7, 1.0)")
    assert model.all_priors["M0"] == -19.3
    assert model.units["dmu_2"] == "mag"
    assert model.blinded == ("dmu_1", "dmu_2", "dmu_3", "dmu_4")
    assert Supernova(**model.to_config()).cosmology == model.cosmology
    dmu = np.array([0.1, -0.05, 0.2, 0.3])
    sites = {name: value for name, value in TRUTH.items() if name != "M0"}
    found = LogDensity(model, few)(sites | {f"dmu_{k + 1}": value for k, value in enumerate(dmu)})
    change = CubicSpline([0.1, 0.4, 0.7, 1.0], dmu, bc_type="natural")
    line = np.where(few.z_cmb < 0.1, dmu[0] + change(0.1, 1) * (few.z_cmb - 0.1), change(few.z_cmb))
    moved = few.replace_observations(few.m_b - line, few.x1, few.c)
    plain = Supernova(priors={"Om0": 0.3, "M0": -19.3})
    expected = LogDensity(plain, moved)(sites) + stats.norm.logpdf(dmu).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_refusals():
    for text in ("nodes(0.1, 0.2)", "nodes(0.3, 0.2, 0.5)", "nodes(0, 1, 2)", "nodes(a)", "nodes()"):
        with pytest.raises(ValueError, match=r"cosmology: expected nodes, or nodes\(z1, z2"):
            Supernova(cosmology=text)
    with pytest.raises(ValueError, match="distance_nodes: expected cosmology='nodes'; found 'lcdm'"):
        distance_nodes("lcdm", {})
    draws = {f"dmu_{k + 1}": np.zeros((2, 50)) for k in range(22)}
    with pytest.raises(ValueError, match="expected 220 draws or more; found 100"):
        distance_nodes("nodes", draws)


def test_the_sample_of_a_posterior_is_read_by_the_distance_model(tmp_path):
    rng = np.random.default_rng(1)
    covariance = 1e-4 * (np.eye(22) + 0.5)
    draws = rng.multivariate_normal(np.linspace(0.1, -0.1, 22), covariance, (4, 500))
    sample = distance_nodes("nodes", {f"dmu_{k + 1}": draws[..., k] for k in range(22)})
    flat = draws.reshape(-1, 22)
    np.testing.assert_allclose(sample.covariance, np.cov(flat.T), rtol=1e-12)
    (warning,) = sample.warnings
    assert "from 2000 draws" in warning
    assert "parameters fitted to 22 nodes by 0.10 of their errors" in warning
    assert not distance_nodes("nodes", {f"dmu_{k + 1}": np.tile(draws[..., k], 2) for k in range(22)}).warnings
    with jax.enable_x64(True):
        fiducial = distmod(np.asarray(UNION3_NODES), Cosmology.flat(H0=70.0, Om0=0.3))
    np.testing.assert_allclose(sample.mu, fiducial + flat.mean(axis=0), atol=1e-9)
    sample.to_table().write(tmp_path / "nodes.ecsv")
    with pytest.warns(DataWarning, match=r"nodes\.ecsv: the covariance is from 2000 draws"):
        again = read_distance_moduli(str(tmp_path / "nodes.ecsv"))
    assert again.warnings == sample.warnings
    np.testing.assert_allclose(again.covariance, sample.covariance, rtol=1e-12)
    np.testing.assert_allclose(again.mu, sample.mu, rtol=1e-12)
    tables = Supernova(cosmology="nodes").tables({f"dmu_{k + 1}": draws[..., k] for k in range(22)})
    np.testing.assert_array_equal(tables["nodes"]["covariance"], sample.covariance)
    assert Supernova().tables({}) == {}


def test_blinded_moduli_say_so_where_they_are_read(tmp_path):
    """The draws that `hbm_jax.sample` hides are marked, and the mark goes through the file into the data of a fit."""
    draws = np.random.default_rng(1).normal(0.0, 0.01, (3, 1, 4000))
    tree = xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset({f"dmu_{k + 1}": (("chain", "draw"), x) for k, x in enumerate(draws)}),
            "unconstrained_posterior": xr.Dataset({"position": (("chain", "draw", "parameter"), draws.T[None, :, 0])}),
        }
    )
    blinding = Blinding(("dmu_1", "dmu_2", "dmu_3")).measured_in(tree["posterior"].to_dataset())
    hidden = blinding.hide(tree, {})["posterior"].to_dataset()
    nodes = "nodes(0.1, 0.4, 0.7)"
    assert distance_nodes(nodes, tree["posterior"].to_dataset()).warnings == ()
    sample = distance_nodes(nodes, hidden)
    sample.to_table().write(tmp_path / "nodes.ecsv")
    with pytest.warns(DataWarning, match=r"nodes\.ecsv: blinded: the moduli are shifted by hidden offsets"):
        again = read_distance_moduli(tmp_path / "nodes.ecsv")
    assert again.warnings == sample.warnings
    assert "Warning: blinded" in again.describe()
    np.testing.assert_allclose(again.covariance, np.cov(draws[:, 0]), rtol=1e-10)


@pytest.mark.long
def test_nodes_and_the_supernovae_give_the_same_matter_density(monte_carlo):
    """The two steps, nodes and then a Hubble diagram, against a fit of the cosmology to the supernovae."""
    jla = load_jla().subset(np.arange(0, 740, 4))
    options = {"seed": 1, "num_chains": 4, "progress": False}
    nodes = "nodes(0.02, 0.1, 0.25, 0.45, 0.7, 1.0)"
    far = hbm_jax.sample(Supernova(cosmology=nodes), jla, **options)
    assert far.verdict
    sample = distance_nodes(nodes, far.posterior)
    two = hbm_jax.sample(HubbleDiagram(), sample, **options)
    one = hbm_jax.sample(Supernova(), jla, **options)
    means = [float(fit.posterior["Om0"].mean()) for fit in (two, one)]
    sd = float(one.posterior["Om0"].std())
    assert abs(means[0] - means[1]) < 0.4 * sd
    assert float(two.posterior["Om0"].std()) == pytest.approx(sd, rel=0.2)
