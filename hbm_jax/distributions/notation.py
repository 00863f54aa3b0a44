"""Priors written as text, such as ``Normal(0, 1)``, for the command line and run folders."""

import ast
import inspect
import math

import numpyro.distributions as dist
from numpyro.distributions.truncated import LeftTruncatedDistribution, RightTruncatedDistribution
from numpyro.distributions.truncated import TwoSidedTruncatedDistribution as TwoSided

from hbm_jax.names import did_you_mean


def _distributions() -> dict:
    """Return the distributions of NumPyro by name."""
    classes = {
        name: value
        for name, value in vars(dist).items()
        if inspect.isclass(value) and issubclass(value, dist.Distribution) and value is not dist.Distribution
    }
    return classes | {"TruncatedNormal": dist.TruncatedNormal}  # a function of NumPyro


def distribution_from_text(text: str, name: str = "prior") -> dist.Distribution | float:
    """Read a distribution, or a number that fixes a parameter, from text.

    Parameters
    ----------
    text : str
        ``"Normal(0, 1)"``, ``"Uniform(low=-3, high=0)"``, ``"TruncatedNormal(0, 1, low=0)"``: the name of any NumPyro
        distribution with numbers as arguments; or a bare number, which fixes the parameter.
    name : str
        Name of the parameter, for error messages.

    Raises
    ------
    ValueError
        If the text does not have this form. It is never evaluated as code.

    Examples
    --------
    >>> distribution_from_text("Uniform(-3, 0)").high
    0.0
    """
    expected = f"{name}: expected a number or a scalar NumPyro distribution such as 'Normal(0, 1)'; found {text!r:.200}"
    try:
        node = ast.parse(str(text).strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"{expected}, which cannot be read.") from None
    if not isinstance(node, ast.Call):
        return _number(node, expected)
    if not isinstance(node.func, ast.Name):
        raise ValueError(f"{expected}.")
    distributions = _distributions()
    if node.func.id not in distributions:
        suggestion = did_you_mean(node.func.id, distributions)
        raise ValueError(f"{expected}, where {node.func.id!r} is not a NumPyro distribution{suggestion}.")
    args = [_number(arg, expected) for arg in node.args]
    kwargs = {str(keyword.arg): _number(keyword.value, expected) for keyword in node.keywords}
    try:
        prior = distributions[node.func.id](*args, **kwargs, validate_args=True)
        size = math.prod(prior.shape())
    except (TypeError, ValueError, AssertionError, AttributeError) as error:
        raise ValueError(f"{expected}, which NumPyro refuses: {error}") from None
    if size != 1:
        raise ValueError(f"{expected}, which is a distribution of {size:.0f} numbers, not of one.")
    return prior


def _number(node, expected) -> float:
    """Return the number of a syntax node, or raise an error that begins with ``expected``."""
    try:
        value = ast.literal_eval(node)
        if isinstance(value, bool | str):
            raise TypeError
        if not math.isfinite(number := float(value)):
            raise ValueError
        return number
    except (ValueError, TypeError, SyntaxError, OverflowError):
        raise ValueError(f"{expected}, where {ast.unparse(node)!r} is not a number.") from None


def distribution_to_text(prior) -> str:
    """Write a prior as text that `distribution_from_text` reads back.

    Raises
    ------
    ValueError
        For distributions whose arguments are not all numbers (mixtures, transformed distributions, arrays).

    Examples
    --------
    >>> distribution_to_text(dist.Uniform(-3, 0))
    'Uniform(low=-3.0, high=0.0)'
    """
    if not isinstance(prior, dist.Distribution):
        return repr(float(prior))
    if isinstance(prior, TwoSided | LeftTruncatedDistribution | RightTruncatedDistribution) and isinstance(
        prior.base_dist, dist.Normal
    ):
        name, base = "TruncatedNormal", prior.base_dist
        arguments = {"loc": base.loc, "scale": base.scale} | {
            bound: getattr(prior, bound) for bound in ("low", "high") if hasattr(prior, bound)
        }
    else:
        name, arguments = type(prior).__name__, {key: getattr(prior, key) for key in type(prior).arg_constraints}
    try:
        if name not in _distributions():
            raise TypeError
        text = f"{name}({', '.join(f'{key}={float(value)!r}' for key, value in arguments.items())})"
        distribution_from_text(text)  # raises for mixtures and transformed distributions
    except (TypeError, ValueError):
        raise ValueError(
            f"The prior {prior!r} cannot be written as text: expected a NumPyro distribution with numbers as arguments "
            f"such as Normal(0, 1); found {type(prior).__name__}."
        ) from None
    return text
