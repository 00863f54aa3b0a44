"""A run that a test kills: ``python killed.py sample|resume FOLDER OUT``."""

import os
import sys

import jax
import numpy as np
from programs import eight_schools

import hbm_jax as hbm
from hbm_jax.inference import resume
from hbm_jax.inference.sampler import loop

Y = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
SIGMA = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
# Long enough for as many kills as the test wants: each takes two or three blocks.
OPTIONS = {"seed": 3, "num_warmup": 3000, "num_samples": int(os.environ.get("HBM_JAX_TEST_DRAWS", "6000"))}


def main(what, folder, out):
    jax.config.update("jax_compilation_cache_dir", os.environ["HBM_JAX_TEST_CACHE"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    loop.SECONDS_PER_BLOCK = 0.03
    if what == "sample":
        fit = hbm.sample(eight_schools, Y, SIGMA, checkpoint=folder, progress=False, **OPTIONS)
    else:
        fit = resume(folder, eight_schools, Y, SIGMA, progress=False)
    np.savez(
        out, position=fit.tree["unconstrained_posterior"]["position"], step_size=fit.tree["sample_stats"]["step_size"]
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
