"""Optical depth of the warm-hot intergalactic medium without tables, for several media."""

import functools

import jax
import numpy as np

from hbm_jax.absorption import whim_optical_depth
from hbm_jax.cosmology import Cosmology
from hbm_jax.precomputation import precomputed


@functools.partial(jax.jit, static_argnums=5)
def _tau(energy, z, n0, log10_T, metallicity, abundances):
    return whim_optical_depth(
        energy, z, n0=n0, log10_T=log10_T, log10_xi=0.0, metallicity=metallicity, abundances=abundances,
        cosmology=Cosmology.flat(H0=70.0, Om0=0.3),
    )  # fmt: skip


def whim_depth(energy, z, log10_n0, log10_T, metallicity, abundances="wilm"):
    """Return the optical depth, (num_media, num_energies)."""
    chunks = np.pad(energy, (0, -len(energy) % 512), mode="edge").reshape(-1, 512)
    media = np.stack([10.0 ** np.asarray(log10_n0, float), log10_T, metallicity], axis=-1)
    tau = precomputed(lambda: [[np.asarray(_tau(c, float(z), *m, abundances)) for c in chunks] for m in media])
    return np.reshape(tau, (len(media), -1))[:, : len(energy)]
