"""Supernovae with a covariance in alpha and beta: SNLS3's blocks, JLA's form, and the table of the likelihood."""

import jax
import numpy as np
import pytest
from models.densities import LogDensity
from models.test_supernova import PRIORS, moduli
from monte_carlo import seed
from scipy import stats

import hbm_jax
from hbm_jax.data import CorrelatedSupernovae, DataError, blocks_from_joint, load_jla, read_correlated_supernovae
from hbm_jax.data.protocol import Container
from hbm_jax.data.supernovae.correlated import BLOCKS
from hbm_jax.models import CorrelatedSupernova
from hbm_jax.models.supernovae import correlated_table
from hbm_jax.models.supernovae.correlated_table import tabulate
from hbm_jax.models.supernovae.laws.host import massive_hosts

POINTS = [
    {"Om0": 0.25, "w0": -0.9, "M0": -19.1, "alpha": 1.3, "beta": 2.9, "delta_M": -0.05},
    {"Om0": 0.1, "w0": -0.5, "M0": -19.3, "alpha": 0.6, "beta": 2.2, "delta_M": 0.1},
    {"Om0": 0.6, "w0": -2.2, "M0": -19.0, "alpha": 1.9, "beta": 3.5, "delta_M": 0.0},
    {"Om0": 0.02, "w0": -1.4, "M0": -19.2, "alpha": 1.0, "beta": 2.5, "delta_M": -0.2},
]


# As of the other supernova model, but alpha multiplies the stretch as SNLS3 has it.
OWN_PRIORS = PRIORS | {"alpha": stats.norm(0, 2)}


@pytest.fixture(scope="module")
def snls3(shared_data):
    return read_correlated_supernovae(
        shared_data("supernovae/snls3_lcparams.txt"), covariance=str(shared_data("supernovae/snls3_covmats.npz"))
    )


def plain(data, p, scatter=None):
    """Log likelihood as it is written, with the moduli of the exact distances."""
    sne, a, b = data.sne, p["alpha"], p["beta"]
    v0, va, vb, v0a, v0b, vab = data.blocks
    covariance = v0 + a * a * va + b * b * vb + 2 * a * v0a - 2 * b * v0b - 2 * a * b * vab
    own = np.array([1.0, a, -b])
    errors = 0.0 if data.blocks_hold_errors else np.einsum("i,nij,j->n", own, sne.covariance, own)
    scatter = sne.variance_coherent if scatter is None else scatter**2
    covariance = covariance + np.diag(errors + scatter + sne.variance_lensing + sne.variance_velocity)
    residual = sne.m_b + a * sne.x1 - b * sne.c - p["delta_M"] * (sne.log10_mass > 10) - p["M0"] - moduli(sne, p)
    return stats.multivariate_normal(np.zeros(len(sne)), covariance).logpdf(residual)


def log_prior(p):
    return sum(np.sum(OWN_PRIORS[name].logpdf(value)) for name, value in p.items())


def assert_equal_densities(data, points):
    """By the table and by the factorisation: values, and gradients of the one as of the other."""
    model = CorrelatedSupernova(cosmology="wcdm")
    table, dense = LogDensity(model, data), LogDensity(model.dense(), data)
    for p in points:
        expected = plain(data, p) + log_prior(p)
        (value, gradient), (other, slopes) = (density.with_gradient(p) for density in (table, dense))
        assert value == pytest.approx(expected, abs=1e-8), "by the table"
        assert other == pytest.approx(expected, abs=1e-8), "by the factorisation"
        for name in p:
            np.testing.assert_allclose(gradient[name], slopes[name], rtol=1e-6, atol=1e-6, err_msg=name)


def diagonal_of(data):
    sne = data.sne
    return sne.variance_coherent + sne.variance_velocity + sne.variance_lensing


def table_for(data):
    return tabulate(data, massive_hosts(data.sne, 10.0, 0.0, False), diagonal_of(data))


def test_some_of_snls3_is_the_plain_dense_gaussian(snls3):
    """Its blocks are without the errors of the light-curve fits."""
    data = snls3.subset(np.arange(3, 472, 8))
    assert not data.blocks_hold_errors
    density = LogDensity(CorrelatedSupernova(cosmology="wcdm"), data)
    for p in POINTS:
        assert density(p) == pytest.approx(plain(data, p) + log_prior(p), abs=1e-8)


@pytest.mark.long
def test_snls3_is_the_plain_dense_gaussian(snls3):
    assert_equal_densities(snls3, POINTS)
    table = table_for(snls3)
    assert table.alpha[0] < 1.2 - 8 * 0.08
    assert table.alpha[1] > 1.2 + 8 * 0.08
    assert table.beta[0] < 2.7 - 8 * 0.09
    assert table.beta[1] > 2.7 + 8 * 0.09


def some_of_jla(num):
    """Supernovae of JLA with a joint covariance of 3 N x 3 N in the form of the published one."""
    sne = load_jla().subset(np.arange(num) * (740 // num))
    rng = np.random.default_rng(3)
    root = rng.normal(size=(3 * num, 6)) * np.tile([0.01, 0.05, 0.01], num)[:, None]
    joint = root @ root.T
    for n, covariance in enumerate(sne.covariance):
        joint[3 * n : 3 * n + 3, 3 * n : 3 * n + 3] += covariance
    return CorrelatedSupernovae.from_supernovae(sne, blocks_from_joint(joint), blocks_hold_errors=True), joint


@pytest.fixture(scope="module")
def small():
    return some_of_jla(40)


@pytest.mark.long
def test_table_of_the_form_of_jla(monkeypatch):
    assert correlated_table.FEWEST == 200, "as the documentation says"
    monkeypatch.setattr(correlated_table, "FEWEST", 100)
    data, _ = some_of_jla(100)
    table = table_for(data)
    assert_equal_densities(
        data, [POINTS[0] | {"alpha": a, "beta": b} for a, b in [(0.14, 3.1), (0.05, 2.2), (0.22, 3.7)]]
    )
    assert table_for(data.subset(np.arange(99))) is None
    # Ten standard deviations on either side of generalised least squares, in which all that is smooth in z is free.
    sne, kappa = data.sne, [1, 0.14**2, 3.1**2, 0.28, -6.2, -2 * 0.14 * 3.1]
    covariance = np.tensordot(kappa, data.blocks, 1) + np.diag(diagonal_of(data))
    design = np.column_stack([-sne.x1, sne.c, sne.log10_mass > 10, np.log(sne.z_cmb)[:, None] ** np.arange(6)])
    inverse = np.linalg.inv(design.T @ np.linalg.solve(covariance, design))
    best = inverse @ design.T @ np.linalg.solve(covariance, sne.m_b)
    for span, value, error in zip((table.alpha, table.beta), best, np.sqrt(np.diagonal(inverse)), strict=False):
        assert span[0] < value - 8 * error
        assert span[1] > value + 8 * error


@pytest.mark.long
def test_a_sample_that_no_table_describes_is_factorised(monkeypatch, small):
    """The errors of the stretches are most of the covariance at the edges of the posterior of 40 supernovae."""
    monkeypatch.setattr(correlated_table, "FEWEST", 40)
    assert table_for(small[0]) is None


def test_joint_covariance_is_that_of_the_standardised_magnitudes(small):
    data, joint = small
    p = POINTS[0] | {"alpha": 0.14, "beta": 3.1}
    project = np.kron(np.eye(40), [1.0, 0.14, -3.1])
    v0, va, vb, v0a, v0b, vab = data.blocks
    form = v0 + 0.14**2 * va + 3.1**2 * vb + 0.28 * v0a - 6.2 * v0b - 2 * 0.14 * 3.1 * vab
    np.testing.assert_allclose(form, project @ joint @ project.T, rtol=1e-9, atol=1e-14)
    density = LogDensity(CorrelatedSupernova(cosmology="wcdm"), data)
    assert density(p) == pytest.approx(plain(data, p) + log_prior(p), abs=1e-8)
    without = LogDensity(CorrelatedSupernova(cosmology="wcdm", mass_step=False), data)
    expected = plain(data, p | {"delta_M": 0.0}) + log_prior(p) - OWN_PRIORS["delta_M"].logpdf(p.pop("delta_M"))
    assert without(p) == pytest.approx(expected, abs=1e-8)


def test_intrinsic_scatter_can_be_free(small):
    data, _ = small
    p = POINTS[0] | {"alpha": 0.14, "beta": 3.1, "sigma_int": 0.12}
    common = LogDensity(CorrelatedSupernova(cosmology="wcdm", scatter="common"), data)
    assert common(p) == pytest.approx(plain(data, p, 0.12) + log_prior(p), abs=1e-8)
    model = CorrelatedSupernova(cosmology="wcdm", scatter="survey")
    surveys = list(data.sne.survey_counts)
    each = np.linspace(0.08, 0.2, len(surveys))
    of_each = each[[surveys.index(survey) for survey in data.survey]]
    p["sigma_int"] = each
    assert LogDensity(model, data)(p) == pytest.approx(plain(data, p, of_each) + log_prior(p), abs=1e-8)
    assert model.coords(data)["survey"] == surveys


@pytest.mark.long
def test_simulated_magnitudes_have_the_covariance(small, monte_carlo):
    data, _ = small
    p = {name: value for name, value in POINTS[0].items() if name != "w0"} | {"alpha": 0.14, "beta": 3.1}
    model = CorrelatedSupernova()
    kappa = [1, 0.14**2, 3.1**2, 0.28, -6.2, -2 * 0.14 * 3.1]
    scores = []
    for number in range(12):
        drawn, truth = model.simulate(jax.random.key(seed(number)), data, p)
        assert truth["alpha"] == 0.14
        sne = drawn.sne
        covariance = np.tensordot(kappa, data.blocks, 1) + np.diag(
            sne.variance_coherent + sne.variance_lensing + sne.variance_velocity
        )
        mean = moduli(sne, p) + p["M0"] - 0.14 * sne.x1 + 3.1 * sne.c + p["delta_M"] * (sne.log10_mass > 10)
        scores.append(np.linalg.solve(np.linalg.cholesky(covariance), sne.m_b - mean))
    scores = np.ravel(scores)
    monte_carlo.within(scores.mean(), 0.0, scores.size**-0.5, name="mean")
    monte_carlo.within((scores**2).mean(), 1.0, (2.0 / scores.size) ** 0.5, name="variance")
    monte_carlo.distribution(scores, "norm")


def test_container_and_config_round_trips(small):
    data, _ = small
    assert isinstance(data, Container)
    back = CorrelatedSupernovae.from_dict(data.to_dict())
    np.testing.assert_array_equal(back.blocks, data.blocks)
    assert back.name == data.name
    assert back.blocks_hold_errors is True
    few = data.subset([3, 5, 8])
    np.testing.assert_array_equal(few.blocks[2], data.blocks[2][np.ix_([3, 5, 8], [3, 5, 8])])
    masked = data.subset(np.isin(np.arange(40), [3, 5, 8]))
    np.testing.assert_array_equal(masked.blocks, few.blocks)
    assert "their covariance depends on alpha and beta" in data.describe()
    assert data.to_table().meta["blocks"].shape == (6, 40, 40)
    model = CorrelatedSupernova(cosmology="wcdm", scatter="survey", priors={"beta": "Normal(3, 1)"})
    assert CorrelatedSupernova(**model.to_config()).to_config() == model.to_config()


def test_published_files(small, tmp_path, snls3, shared_data):
    assert snls3.sne.survey_counts == {"snls": 242, "lowz": 123, "sdss": 93, "hst": 14}
    text = tmp_path / "text"
    text.mkdir()
    for name, block in zip(BLOCKS, snls3.blocks[:, :50, :50], strict=True):
        np.savetxt(text / f"snls3_{name}_covmatrix.dat", np.append(50, block.ravel()))
    lines = shared_data("supernovae/snls3_lcparams.txt").read_text().splitlines()
    (tmp_path / "lcparams.txt").write_text("\n".join(lines[:51]) + "\n")
    again = read_correlated_supernovae(tmp_path / "lcparams.txt", covariance=str(text))
    assert again.name == snls3.name[:50]
    np.testing.assert_allclose(again.blocks, snls3.blocks[:, :50, :50], rtol=1e-15)

    from astropy.io import fits

    data, joint = small
    folder = tmp_path / "jla"
    folder.mkdir()
    for index, part in enumerate((0.25 * joint, 0.75 * joint)):
        fits.writeto(folder / f"C_{index}.fits", part)
    table = tmp_path / "jla_lcparams.txt"
    sne = data.sne
    errors = np.sqrt(np.array([sne.variance_m_b_total, sne.covariance[:, 1, 1], sne.covariance[:, 2, 2]]))
    index = [{"snls": 1, "sdss": 2, "lowz": 3, "hst": 4}[survey] for survey in sne.survey]
    columns = [sne.name, sne.z_cmb, sne.z_hel, 0 * sne.c, sne.m_b, errors[0], sne.x1, errors[1], sne.c, errors[2]]
    columns += [
        sne.log10_mass,
        sne.sigma_log10_mass,
        *(sne.covariance[:, i, j] for i, j in ((0, 1), (0, 2), (1, 2))),
        index,
    ]
    head = "#name zcmb zhel dz mb dmb x1 dx1 color dcolor 3rdvar d3rdvar cov_m_s cov_m_c cov_s_c set"
    rows = [" ".join(str(v) for v in row) for row in zip(*columns, strict=True)]
    table.write_text("\n".join([head, *rows]))
    jla = read_correlated_supernovae(table, covariance=str(folder))
    assert jla.blocks_hold_errors
    np.testing.assert_allclose(jla.blocks, data.blocks, rtol=1e-9, atol=1e-18)
    np.testing.assert_allclose(jla.sne.variance_coherent, sne.variance_coherent, rtol=1e-12)


def test_bad_input_is_named(small, tmp_path):
    data, joint = small
    sne, blocks = data.sne, data.blocks
    with pytest.raises(DataError, match=r"expected shape \(6, 40, 40\) for 40 supernovae; found \(6, 39, 39\)"):
        CorrelatedSupernovae.from_supernovae(sne, blocks[:, :39, :39])
    with pytest.raises(DataError, match=r"expected names among v0, va, .*found 'vo'"):
        CorrelatedSupernovae.from_supernovae(sne, {"vo": blocks[0]})
    lean = np.array(blocks)
    lean[3, 1, 2] += 1.0
    with pytest.raises(DataError, match="block v0a: expected a symmetric matrix"):
        CorrelatedSupernovae.from_supernovae(sne, lean)
    lean[3, 1, 2] = np.nan
    with pytest.raises(DataError, match="block v0a: expected finite numbers"):
        CorrelatedSupernovae.from_supernovae(sne, lean)
    with pytest.raises(DataError, match=r"expected shape \(3N, 3N\); found \(119, 119\)"):
        blocks_from_joint(joint[:119, :119])
    with pytest.raises(FileNotFoundError, match="expected a file or a folder; found nothing at nowhere"):
        read_correlated_supernovae("x.csv", covariance="nowhere")
    table = tmp_path / "sne.csv"
    sne.to_table().write(table)
    np.savez(tmp_path / "wrong.npz", va=blocks[1])
    with pytest.raises(DataError, match="found no v0"):
        read_correlated_supernovae(table, covariance=str(tmp_path / "wrong.npz"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"expected files \*v0_covmatrix.dat and so on, or C_\*.fits; found neither"):
        read_correlated_supernovae(table, covariance=str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"Unknown scatter of CorrelatedSupernova 'commn'.*did you mean 'common'"):
        CorrelatedSupernova(scatter="commn")
    with pytest.raises(ValueError, match="has no parameter 'sigma_int'"):
        CorrelatedSupernova(priors={"sigma_int": 0.1})
    with pytest.raises(DataError, match="expected CorrelatedSupernovae; found Supernovae"):
        CorrelatedSupernova()(sne)


@pytest.mark.slow
def test_posterior_of_snls3(snls3):
    """The posterior stays where it was first found; the published one is not in the data to compare with."""
    fit = hbm_jax.sample(CorrelatedSupernova(cosmology="wcdm"), snls3, seed=1, progress=False)
    assert fit.verdict.usable
    means = {name: float(fit.posterior[name].mean()) for name in ("alpha", "beta", "w0", "Om0")}
    assert means["alpha"] == pytest.approx(1.2, abs=0.1)
    assert means["beta"] == pytest.approx(2.72, abs=0.1)
    assert -1.1 < means["w0"] < -0.8
    assert 0.1 < means["Om0"] < 0.3
