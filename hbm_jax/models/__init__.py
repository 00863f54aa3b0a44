"""Models: each a frozen dataclass of its choices whose call is an ordinary NumPyro program."""

from hbm_jax.models.supernova import Supernova

__all__ = ["Supernova"]
