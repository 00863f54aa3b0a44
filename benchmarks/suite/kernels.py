"""The kernels against what others use for the same, value by value and second by second."""

import statistics
import time

import numpy as np


def _seconds(work, repeats):
    work()
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def distances(repeats):
    """Distance moduli of JLA's 740 redshifts, flat wCDM."""
    import astropy.units as u
    import jax
    import jax.numpy as jnp
    from astropy.cosmology import FlatwCDM
    from scipy.integrate import quad

    from hbm_jax import constants
    from hbm_jax.cosmology import Cosmology, RedshiftMatrix
    from hbm_jax.data import load_jla

    z = load_jla().z_cmb
    matrix = RedshiftMatrix(z, z)

    def modulus(parameters):
        return matrix.distmod(Cosmology.flat(H0=70.0, Om0=parameters[0], w0=parameters[1]))

    at = jnp.array([0.3, -0.9])
    value = jax.jit(modulus).lower(at).compile()
    slope = jax.jit(jax.value_and_grad(lambda p: modulus(p).sum())).lower(at).compile()
    reference = FlatwCDM(H0=70.0 * u.km / u.s / u.Mpc, Om0=0.3, w0=-0.9, Tcmb0=0.0 * u.K)

    def quadrature():
        def integrand(x):
            return 1 / np.sqrt(0.3 * (1 + x) ** 3 + 0.7 * (1 + x) ** 0.3)

        comoving = np.array([quad(integrand, 0, one, epsabs=0, epsrel=1e-10)[0] for one in z])
        return 5 * np.log10((1 + z) * comoving * constants.speed_of_light_km_s / 70.0) + 25

    rows = {
        "hbm_jax": (lambda: jax.block_until_ready(value(at)), 50 * repeats),
        "hbm_jax, with gradient": (lambda: jax.block_until_ready(slope(at)), 50 * repeats),
        "astropy": (lambda: reference.distmod(z).value, repeats),
        "SciPy quad": (quadrature, repeats),
    }
    try:
        import jax_cosmo

        def with_jax_cosmo(p):
            c = jax_cosmo.Cosmology(
                Omega_c=p[0] - 0.05, Omega_b=0.05, h=0.7, n_s=0.96, sigma8=0.8, Omega_k=0.0, w0=p[1], wa=0.0
            )
            a = 1 / (1 + jnp.asarray(z))
            chi = jax_cosmo.background.radial_comoving_distance(c, a) / 0.7  # Mpc
            return 5 * jnp.log10((1 + z) * chi) + 25

        theirs = jax.jit(with_jax_cosmo).lower(at).compile()
        rows["jax-cosmo"] = lambda: jax.block_until_ready(theirs(at)), repeats
    except Exception as error:  # it is not kept up with JAX
        return rows, f"jax-cosmo: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
    return rows, ""


def absorption(repeats):
    """Transmission of tbabs, 1e21 cm^-2, at 2000 energies from 0.3 to 10 keV."""
    import jax
    import jax.numpy as jnp

    from hbm_jax.absorption import neutral_cross_section

    energies = np.geomspace(0.3, 10.0, 2000)
    # As in a fit: the cross section is data, the column a parameter.
    sigma = np.asarray(neutral_cross_section(energies))
    ours = jax.jit(lambda nh: jnp.exp(-nh * sigma)).lower(0.1).compile()
    rows = {"hbm_jax": (lambda: np.asarray(ours(0.1)), 50 * repeats)}
    try:
        from astromodels import TbAbs

        model = TbAbs(NH=0.1)
        rows["astromodels"] = lambda: np.asarray(model(energies)), 10 * repeats
    except Exception as error:
        return rows, f"astromodels: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
    return rows, ""


def table(quick=False) -> str:
    """Text of both comparisons."""
    import jax

    repeats = 3 if quick else 15
    lines = [
        "Kernels: median times, and the median difference from hbm_jax (largest beside edges and where tables end)"
    ]
    with jax.enable_x64(True):
        for title, measured in (
            ("740 distance moduli, flat wCDM [mag]", distances),
            ("tbabs, 2000 energies", absorption),
        ):
            rows, remark = measured(repeats)
            lines += ["", title]
            ours = np.asarray(rows["hbm_jax"][0]())
            base = _seconds(*rows["hbm_jax"])
            for name, (work, times) in rows.items():
                seconds = _seconds(work, times)
                found = work()
                apart = "" if name.startswith("hbm_jax") else f"{np.median(np.abs(np.asarray(found) - ours)):9.1e}"
                lines.append(f"{name:26s}{1e6 * seconds:11.1f} us{seconds / base:10.3g} times{apart:>11s}")
            lines += [remark] if remark else []
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
