"""Composed spectra written as text, such as ``PowerLaw() * Absorption('mw')``: what configurations and fits store."""

import ast
import dataclasses
import inspect

from hbm_jax.absorption.neutral import Grains
from hbm_jax.cosmology import Cosmology, FlatCosmology, Radiation
from hbm_jax.names import did_you_mean, listed
from hbm_jax.spectra.model import components
from hbm_jax.spectra.model.components import Component, Product, Sum

CLASSES = {
    name: thing
    for name, thing in vars(components).items()
    if name in components.__all__ and inspect.isclass(thing) and issubclass(thing, Component)
}
# XSPEC's names of the components that have its normalisation.
_AMPLITUDE = {"norm": "amplitude"}
XSPEC: dict[str, tuple[str, dict[str, str]]] = {
    "powerlaw": ("PowerLaw", _AMPLITUDE),
    "bknpower": ("BrokenPowerLaw", _AMPLITUDE),
    "cutoffpl": ("CutoffPowerLaw", _AMPLITUDE),
    "grbm": ("Band", _AMPLITUDE),
    "bbodyrad": ("BlackBody", _AMPLITUDE),
    "gaussian": ("GaussianLine", _AMPLITUDE),
    "gauss": ("GaussianLine", _AMPLITUDE),
    "tbabs": ("Absorption", {}),
    "ztbabs": ("Absorption", {}),
    "phabs": ("Absorption", {"model": "phabs"}),
    "zphabs": ("Absorption", {"model": "phabs"}),
    "constant": ("Constant", {}),
}
ARGUMENTS = {one.__name__: one for one in (Cosmology, FlatCosmology, Radiation, Grains)}


def spectrum_to_text(spectrum: Component) -> str:
    """Write a spectrum as text that `spectrum_from_text` reads back.

    Raises
    ------
    ValueError
        For a component that is not of `hbm_jax.spectra.model.components`, or holds something that text does not show.

    Examples
    --------
    >>> from hbm_jax.spectra.model.components import Absorption, PowerLaw
    >>> spectrum_to_text(PowerLaw() * Absorption("host", z=1.5))
    "PowerLaw() * Absorption(label='host', z=1.5)"
    """
    text = _written(spectrum)
    try:
        same = spectrum_from_text(text) == spectrum
    except ValueError as error:
        raise ValueError(f"The spectrum {spectrum} cannot be written as text: {error}") from None
    if not same:
        raise ValueError(f"The spectrum {spectrum} cannot be written as text: {text} is another one.")
    return text


def _written(spectrum: Component) -> str:
    if isinstance(spectrum, Sum):
        return " + ".join(_written(part) for part in spectrum.parts)
    if isinstance(spectrum, Product):
        inner = (f"({_written(part)})" if isinstance(part, Sum) else _written(part) for part in spectrum.parts)
        return " * ".join(inner)
    given = [(item, getattr(spectrum, item.name)) for item in dataclasses.fields(spectrum)]
    changed = (f"{item.name}={value!r}" for item, value in given if not _is_default(item, value))
    return f"{type(spectrum).__name__}({', '.join(changed)})"


def _is_default(item: dataclasses.Field, value) -> bool:
    return type(value) is type(item.default) and value == item.default


def spectrum_from_text(text: str) -> Component:
    """Read a spectrum from text; it is never evaluated as code.

    Parameters
    ----------
    text : str
        Components by name, with plain values as arguments, sums and products of them, and parentheses. XSPEC's names
        stand for the same components with XSPEC's normalisation (powerlaw, bknpower, cutoffpl, grbm, bbodyrad, gauss,
        tbabs, phabs, constant, in capitals or not); abundances are ``"wilm"`` unless said. Empty parentheses, and
        quotation marks around a label, may be left out.

    Raises
    ------
    ValueError
        For anything else, and for what a component refuses.

    Examples
    --------
    >>> list(spectrum_from_text("(PowerLaw() + BlackBody('bb')) * Absorption()").parameters)
    ['photon_index', 'log10_flux', 'bb_kT', 'bb_log10_flux', 'nh']
    >>> spectrum_from_text("tbabs(mw) * ztbabs(host, z=1.3) * powerlaw").parts[1]
    Absorption(label='host', z=1.3)
    """
    expected = f"spectrum: expected components such as PowerLaw() * Absorption('mw'); found {text!r:.200}"
    try:
        node = ast.parse(str(text).strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"{expected}, which cannot be read.") from None
    try:
        return _composed(node, expected)
    except RecursionError:
        raise ValueError(f"{expected}, of more components than can be read.") from None


def _composed(node: ast.expr, expected: str) -> Component:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
        left, right = _composed(node.left, expected), _composed(node.right, expected)
        return left + right if isinstance(node.op, ast.Add) else left * right
    if isinstance(node, ast.Name):
        node = ast.Call(node, [], [])
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise ValueError(f"{expected}, where {ast.unparse(node)} is no component.")
    labelled = [ast.Constant(word.id) if isinstance(word, ast.Name) else word for word in node.args]
    name = node.func.id
    # PowerLaw is ours, POWERLAW is XSPEC's.
    name, named = (name, {}) if name in CLASSES else XSPEC.get(name.lower(), (name, {}))
    given = {word.arg for word in node.keywords}
    more = [ast.keyword(key, ast.Constant(value)) for key, value in named.items() if key not in given]
    return _called(ast.Call(ast.Name(name), labelled, [*node.keywords, *more]), CLASSES, expected)


def _called(node: ast.Call, known: dict, expected: str):
    name = ast.unparse(node.func)
    if name not in known:
        raise ValueError(
            f"{expected}, where {name!r} is unknown{did_you_mean(name, known)}: expected one of {listed(known)}."
        )
    arguments = [_value(argument, expected) for argument in node.args]
    named = {str(word.arg): _value(word.value, expected) for word in node.keywords}
    try:
        return known[name](*arguments, **named)
    except TypeError as error:
        raise ValueError(f"{expected}, which {name} refuses: {error}") from None


def _value(node: ast.expr, expected: str):
    if isinstance(node, ast.Call):
        return _called(node, ARGUMENTS, expected)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        raise ValueError(f"{expected}, where {ast.unparse(node)} is no plain value.") from None
