"""Entry point of ``python -m hbm_jax``, the same command line as ``hbm-jax``."""

import sys

from hbm_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
