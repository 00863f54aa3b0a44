"""Claim: the posteriors of the Golenetskii relation are calibrated, with a limit of flux and unknown redshifts on.

512 replicates of eight bursts of 4 or 6 intervals above a limit of flux, two of them without a redshift; and of such
bursts without limit, every redshift known.

    python benchmarks/calibration_golenetskii.py [--replicates 512] [--output benchmarks/results/FILE.txt]
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from calibration_normal import certificate

PRIORS = {
    "gamma_mean": "Normal(1.5, 0.2)", "gamma_std": "HalfNormal(0.3)", "log10_N_mean": "Normal(52, 0.3)",
    "log10_N_std": "HalfNormal(0.4)", "log10_E_peak_mean": "Normal(2.6, 0.2)", "log10_E_peak_std": "HalfNormal(0.3)",
    "log10_E_peak_scatter": "HalfNormal(0.3)", "intrinsic_scatter": "HalfNormal(0.2)",
}  # fmt: skip


def cases() -> Iterator[tuple[str, object, object]]:
    """Name, model and design."""
    from hbm_jax.data import BurstPopulation
    from hbm_jax.models import Golenetskii

    limited = BurstPopulation(num_intervals=[4, 6], log10_flux_limit=-7.0, unknown=2, sigma_log10_flux=(0.05, 0.1))
    truncated = Golenetskii(truncated=True, priors=PRIORS)
    yield "Golenetskii, limit of flux, two redshifts unknown", truncated, limited.draw(8, seed=2).data
    unselected = BurstPopulation(num_intervals=[4, 6], sigma_log10_flux=(0.05, 0.1))
    yield "Golenetskii, no limit, redshifts known", Golenetskii(priors=PRIORS), unselected.draw(8, seed=2).data


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=512)
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    arguments = parser.parse_args()
    certificate(cases(), arguments.replicates, arguments.output)
