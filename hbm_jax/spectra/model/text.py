"""Text form of model expressions, such as ``PowerLaw() * Absorption('mw')``, as stored in configurations and fits."""

import ast
import dataclasses
import re

from hbm_jax.absorption.neutral import Grains
from hbm_jax.cosmology import Cosmology, FlatCosmology, Radiation
from hbm_jax.names import did_you_mean, listed
from hbm_jax.spectra.folding.area_errors import AreaErrors
from hbm_jax.spectra.model.components import Component, Product, Sum
from hbm_jax.spectra.model.factors import FluxScale
from hbm_jax.spectra.model.photons import GaussianSmoothing
from hbm_jax.spectra.model.registration import CLASSES, REGISTERED, XSPEC, load_entry_points, xspec_name
from hbm_jax.spectra.model.tables import AdditiveTable, MultiplicativeTable

BRACES = re.compile(r"\b([aem]table)\s*\{([^{}]*)\}", re.IGNORECASE)  # XSPEC's way to name the file of a table
PLASMAS = ("apec", "vapec", "mekal", "vmekal", "raymond", "bapec", "nei")
ARGUMENTS = {cls.__name__: cls for cls in (Cosmology, FlatCosmology, Radiation, Grains)}


def spectrum_to_text(spectrum: Component) -> str:
    """Return a model expression as text that `spectrum_from_text` reads.

    Raises ValueError if a component is neither of hbm_jax nor registered (`hbm_jax.spectra.component`), or has an
    attribute that cannot be written as text.

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
        raise ValueError(
            f"The spectrum {spectrum} cannot be written as text: {text} reads back as a different spectrum."
        )
    return text


def _written(spectrum: Component) -> str:
    """Return the text of an expression, without a check."""
    if isinstance(spectrum, Sum):
        return " + ".join(_written(part) for part in spectrum.parts)
    if isinstance(spectrum, Product):
        factors = (f"({_written(part)})" if isinstance(part, Sum) else _written(part) for part in spectrum.parts)
        return " * ".join(factors)
    attributes = [(item, getattr(spectrum, item.name)) for item in dataclasses.fields(spectrum)]
    changed = (
        f"{item.name}={_written(value) if isinstance(value, Component) else repr(value)}"
        for item, value in attributes
        if type(value) is not type(item.default) or value != item.default
    )
    return f"{type(spectrum).__name__}({', '.join(changed)})"


def spectrum_from_text(text: str) -> Component:
    """Read a model expression from text, without evaluating it as code.

    Raises ValueError if the text is not such an expression, or a component rejects its arguments.

    Parameters
    ----------
    text : str
        Components by name with literal arguments, their sums and products, and parentheses. XSPEC's names (powerlaw,
        bknpower, diskbb, gauss, tbabs and others, see `hbm_jax.spectra.model.registration.XSPEC`), in any case and
        abbreviated, are the same components with the normalisation of XSPEC; the default abundances are ``"wilm"``.
        Empty parentheses, and quotation marks around a label, may be omitted. ``cflux(a)`` and ``clumin(a, z=0.5)`` are
        the expression ``a`` scaled to a flux or luminosity, ``gsmooth(a)`` is the expression smoothed by a Gaussian,
        ``atable("a.mod")`` is a table model, and ``AreaErrors("a.fits")`` the errors of an effective area; a label is
        their second argument. As in XSPEC, ``tbabs(powerlaw + gauss(fe))``, a multiplicative component of an
        expression is their product, and the file of a table may be in braces, ``atable{a.mod}``. A single name in
        parentheses is a label, except that of an additive component, as in ``tbabs(powerlaw)``.

    Examples
    --------
    >>> list(spectrum_from_text("(PowerLaw() + BlackBody('bb')) * Absorption()").parameters)
    ['photon_index', 'log10_flux', 'bb_kT', 'bb_log10_flux', 'nh']
    >>> spectrum_to_text(spectrum_from_text("tbabs(mw) * ztbabs(host, z=1.3) * powerlaw"))
    "Absorption(label='mw') * Absorption(label='host', z=1.3) * PowerLaw(norm='amplitude')"
    >>> list(spectrum_from_text("wabs * cflux(po + gauss(fe), band=(2, 10))").parameters)[:3]
    ['nh', 'log10_flux', 'photon_index']
    """
    expected = f"spectrum: expected components such as PowerLaw() * Absorption('mw'); found {text!r:.200}"
    try:
        quoted = BRACES.sub(lambda table: f"{table[1]}({table[2].strip()!r})", str(text).strip())
        node = ast.parse(quoted, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"{expected}, which cannot be read.") from None
    try:
        return _parsed(node, expected)
    except RecursionError:
        raise ValueError(f"{expected}, of more components than can be read.") from None


def _parsed(node: ast.expr, expected: str) -> Component:
    """Return the component of a syntax node; `expected` begins the messages of errors."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
        left, right = _parsed(node.left, expected), _parsed(node.right, expected)
        return left + right if isinstance(node.op, ast.Add) else left * right
    if isinstance(node, ast.Name):
        node = ast.Call(node, [], [])
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise ValueError(f"{expected}, where {ast.unparse(node)} is not a component.")
    name = node.func.id
    # "PowerLaw" is a class of hbm_jax; any other capitalisation is the XSPEC name.
    if name not in CLASSES and name.lower() not in XSPEC and name not in REGISTERED:
        load_entry_points()
    classes = CLASSES | REGISTERED
    name, xspec_defaults = (name, {}) if name in classes else XSPEC.get(xspec_name(name) or "", (name, {}))
    positional, options = node.args, {}
    if positional and issubclass(classes.get(name, Component), FluxScale | GaussianSmoothing):
        # cflux(a), gsmooth(a): the first argument is an expression.
        options["of"], positional = _parsed(positional[0], expected), positional[1:]
    elif positional and issubclass(classes.get(name, Component), AdditiveTable | MultiplicativeTable | AreaErrors):
        # atable("a.mod"): the first argument is a file.
        options["file"], positional = _value(positional[0], expected), positional[1:]
    elif len(positional) == 1 and not node.keywords and _is_expression(positional[0], classes.get(name)):
        # tbabs(powerlaw) is tbabs * powerlaw.
        return _parsed(node.func, expected) * _parsed(positional[0], expected)
    # A name without quotation marks is a label.
    arguments = [ast.Constant(argument.id) if isinstance(argument, ast.Name) else argument for argument in positional]
    keywords = {argument.arg for argument in node.keywords}
    defaults = [ast.keyword(key, ast.Constant(value)) for key, value in xspec_defaults.items() if key not in keywords]
    call = ast.Call(ast.Name(name), arguments, [*node.keywords, *defaults])
    component = _instantiated(call, classes, expected, **options)
    # cflux(a) in text is FluxScale(of=a) * a.
    return component * options["of"] if isinstance(component, FluxScale) and "of" in options else component


def _is_expression(node: ast.expr, factor: type[Component] | None) -> bool:
    """Return True if the argument of a multiplicative component is the expression that it multiplies, as in XSPEC."""
    if factor is None or getattr(factor, "kind", "") != "multiplicative":
        return False
    if not isinstance(node, ast.Name):
        return isinstance(node, ast.BinOp | ast.Call) and ast.unparse(getattr(node, "func", node)) not in ARGUMENTS
    name = XSPEC.get(node.id.lower(), ("",))[0]
    return getattr(CLASSES.get(name), "kind", "") == "additive"


def _unknown(name: str, classes: dict) -> str:
    """Return the end of a message about an unknown component."""
    if name.lower() in PLASMAS:
        return ": expected a table model for a thermal plasma, atable('file.mod'); see write_table_model for making one"
    names = list(classes if name[:1].isupper() else XSPEC)
    # Names with a redshift, such as ztbabs, are suggested only for a name that begins with z.
    candidates = [other for other in names if name.startswith("z") or not other.startswith("z")]
    similar = did_you_mean(name, candidates)
    return f"{similar}: expected one of {listed(reversed(names), 100)}"


def _instantiated(node: ast.Call, classes: dict, expected: str, **options):
    """Return the object of a call of one of the classes; `options` are further keyword arguments."""
    name = ast.unparse(node.func)
    if name not in classes:
        raise ValueError(f"{expected}, where {name!r} is unknown{_unknown(name, classes)}.")
    arguments = [_value(argument, expected) for argument in node.args]
    keywords = options | {str(keyword.arg): _value(keyword.value, expected) for keyword in node.keywords}
    try:
        return classes[name](*arguments, **keywords)
    except TypeError as error:
        raise ValueError(f"{expected}, which {name} rejects: {error}") from None


def _value(node: ast.expr, expected: str):
    """Return the value of an argument: a literal, a cosmology or grains, or an expression."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ARGUMENTS:
        return _instantiated(node, ARGUMENTS, expected)
    if isinstance(node, ast.Call | ast.BinOp):
        return _parsed(node, expected)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        hint = "; put names of files in quotation marks" if isinstance(node, ast.Attribute) else ""
        raise ValueError(f"{expected}, where {ast.unparse(node)} is not a literal value{hint}.") from None
