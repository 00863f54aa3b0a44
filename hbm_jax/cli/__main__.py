"""Entry point of ``python -m hbm_jax.cli``."""

import sys

from hbm_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
