"""Parser of regression formulas.

Formulas come from users, configuration files and stored results, so they must not run arbitrary code: a formula is
evaluated only if it obeys this grammar. ``y ~ x + (1 + x | county)`` has an intercept and a slope shared by all points,
and deviations from both that vary between counties. The grammar::

    formula      response "~" terms
    response     column | function
    terms        ["+" | "-"] product { ("+" | "-") (product | group) }
    group        "(" terms ("|" | "||") (column { ":" column } | "walk" "(" column ")") ")"
    product      interaction { ("*" | "/") interaction }
    interaction  power { ":" power }
    power        factor [ "**" number ]
    factor       "0" | "1" | column | function | "(" terms ")"
    function     name "(" arithmetic { "," arithmetic } ")"
    arithmetic   numbers, columns, + - * / **, parentheses and the functions of numbers
    column       a name of letters, digits, _ and dots, or any text between backticks
"""

import re
from dataclasses import dataclass, field

import numpy as np

from hbm_jax.names import did_you_mean, listed
from hbm_jax.validation import DataError

EXAMPLE = "such as 'y ~ x + (1 | group)'"
# Functions of one argument that act on each number.
NUMBER_FUNCTIONS = {
    name: getattr(np, name)
    for name in ("abs", "arcsinh", "cos", "exp", "expm1", "log", "log10", "log1p", "log2", "sin", "sqrt", "tan", "tanh")
}
# Functions of whole columns, evaluated by formulaic: number of arguments.
COLUMN_FUNCTIONS = {"C": 1, "I": 1, "center": 1, "poly": 2, "scale": 1, "standardize": 1}
MAX_LENGTH = 10_000  # characters
MAX_TERMS = 1000
MAX_POWER = 10
MAX_DEPTH = 50  # of parentheses
MAX_DIGITS = 30  # of a number
TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))|(?P<name>[^\W\d][\w.]*)|`(?P<quoted>[^`\x00-\x1f]+)`"
    r"|(?P<sign>\*\*|\|\||[-+*/:|(),~]))"
)


@dataclass(frozen=True)
class GroupTerm:
    """A term such as ``(1 + x | county)`` or ``(1 + x | walk(day))``.

    Attributes
    ----------
    columns : str
        Formula of the varying effects, left of the bar.
    factors : tuple of str
        Columns whose combinations define the groups.
    walk : bool
        True: the effects follow a random walk along the factor.
    correlated : bool
        True: the effects of a group are correlated (``|``); False: they are not (``||``).
    """

    columns: str
    factors: tuple[str, ...]
    walk: bool = False
    correlated: bool = True


@dataclass(frozen=True)
class ParsedFormula:
    """Parts of a formula.

    Attributes
    ----------
    response : str
        Column or function on the left-hand side.
    fixed : str
        Formula of the terms shared by all points.
    groups : tuple of GroupTerm
        Terms that vary between groups.
    columns : frozenset of str
        All columns of the formula.
    numbers : frozenset of str
        Columns that occur in arithmetic and so must be numeric.
    """

    response: str
    fixed: str
    groups: tuple[GroupTerm, ...]
    columns: frozenset[str]
    numbers: frozenset[str]


@dataclass(frozen=True)
class Token:
    """A token of a formula, with the position at which it starts."""

    kind: str
    text: str
    start: int


@dataclass
class _Tokens:
    """Tokens of a formula, with the position of the next one, and the columns read so far."""

    formula: str
    tokens: list[Token] = field(default_factory=list)
    position: int = 0
    depth: int = 0
    columns: set[str] = field(default_factory=set)
    numbers: set[str] = field(default_factory=set)

    def __post_init__(self):
        if len(self.formula) > MAX_LENGTH:
            raise DataError(f"formula: expected at most {MAX_LENGTH} characters; found {len(self.formula)}.")
        start = 0
        while self.formula[start:].strip():
            match = TOKEN.match(self.formula, start)
            if match is None:
                bad_position = len(self.formula) - len(self.formula[start:].lstrip())
                character = self.formula[bad_position]
                hint = {"{": " Write I(x - 1) for {x - 1}.", '"': " Write `a name` for a column."}.get(character, "")
                raise self.error("a column, a number, an operator or a function", bad_position, repr(character), hint)
            kind = match.lastgroup
            assert kind is not None
            self.tokens.append(Token(kind, match[kind], match.start(kind) - (kind == "quoted")))
            start = match.end()
        self.tokens.append(Token("end", "", len(self.formula)))

    @property
    def current(self) -> Token:
        """Token to be read next."""
        return self.tokens[self.position]

    def error(self, expected: str, start: int | None = None, found: str | None = None, hint: str = "") -> DataError:
        """Return an error with the expected and the found token, and its position in the formula."""
        start = self.current.start if start is None else start
        found = found or ("its end" if self.current.kind == "end" else repr(self.current.text))
        first, last = max(0, start - 40), start + 20
        before = "..." if first > 0 else ""
        after = "..." if last < len(self.formula) else ""
        excerpt = f"{before}{self.formula[first:start]}[here]{self.formula[start:last]}{after}"
        return DataError(
            f"formula: expected {expected}; found {found} at character {start + 1}: {excerpt}, {EXAMPLE}.{hint}"
        )

    def take(self) -> str:
        """Read the next token and return its text."""
        self.position += 1
        return self.tokens[self.position - 1].text

    def accept(self, *signs: str) -> str | None:
        """Read the next token and return its text if it is one of these signs, else return None."""
        return self.take() if self.current.kind == "sign" and self.current.text in signs else None

    def expect(self, sign: str, expected: str) -> None:
        """Read the next token; raise an error unless it is this sign."""
        if self.accept(sign) is None:
            raise self.error(expected)

    def enter_parenthesis(self) -> None:
        """Increase the depth of nested parentheses; raise an error above `MAX_DEPTH`."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"at most {MAX_DEPTH} nested parentheses")

    def leave_parenthesis(self) -> None:
        """Read the closing parenthesis of an expression."""
        self.expect(")", "an operator or ')'")
        self.depth -= 1

    def column(self) -> str:
        """Read the name of a column."""
        if self.current.kind not in ("name", "quoted"):
            raise self.error("the name of a column")
        self.columns.add(self.current.text)
        return self.take()

    def is_call(self) -> bool:
        """Return True if a function comes next."""
        return self.current.kind == "name" and self.tokens[self.position + 1].text == "("


class _Arithmetic(_Tokens):
    """Parser of functions and of arithmetic. Each method reads the rule of its name and returns the text.

    Columns in arithmetic must be numeric.
    """

    def function(self, only_numbers: bool = False) -> str:
        """Read a function and its arguments."""
        name = self.current.text
        functions = NUMBER_FUNCTIONS if only_numbers else NUMBER_FUNCTIONS.keys() | COLUMN_FUNCTIONS.keys()
        if name not in functions:
            raise self.error(f"a function, one of {listed(sorted(functions))}{did_you_mean(name, functions)}")
        self.position += 2
        self.enter_parenthesis()
        arguments = [_quoted(self.column()) if name == "C" else self.arithmetic()]
        while self.accept(","):
            arguments.append(self.arithmetic())
        self.depth -= 1
        num_arguments = COLUMN_FUNCTIONS.get(name, 1)
        if len(arguments) != num_arguments:
            raise self.error(
                f"{num_arguments} argument{'s' * (num_arguments > 1)} of {name}", found=str(len(arguments))
            )
        if name == "poly" and arguments[1] not in map(str, range(1, MAX_POWER + 1)):
            raise self.error(f"poly(x, n) with n from 1 to {MAX_POWER}", found=arguments[1])
        self.expect(")", "')'")
        return f"{name}({', '.join(arguments)})"

    def arithmetic(self) -> str:
        """Read an arithmetic expression of numbers, columns and functions."""
        text = ""
        while True:
            while sign := self.accept("-", "+"):
                text += sign
            start = self.position
            text += self.operand()
            if self.current.text == "**" and not any(
                t.kind in ("name", "quoted") for t in self.tokens[start : self.position]
            ):
                raise self.error("a column as base of a power")  # 9**9**9 does not fit in memory
            if self.accept("**"):
                text += f" ** {self.exponent()}"
            sign = self.accept("+", "-", "*", "/")
            if sign is None:
                return text
            text += f" {sign} "

    def exponent(self) -> str:
        """Read the exponent of a power in an arithmetic expression."""
        sign = self.accept("-") or ""
        if self.current.kind != "number" or float(self.current.text) > MAX_POWER:
            raise self.error(f"a number up to {MAX_POWER} as exponent")
        return sign + self.number()

    def number(self) -> str:
        """Read a number."""
        text = self.current.text
        if len(text) > MAX_DIGITS:
            raise self.error(f"numbers of at most {MAX_DIGITS} characters", found=f"one of {len(text)}")
        self.position += 1
        return str(int(text)) if text.isdigit() else text

    def operand(self) -> str:
        """Read a number, a column, a function or an expression in parentheses."""
        if self.current.kind == "number":
            return self.number()
        if self.accept("("):
            self.enter_parenthesis()
            text = self.arithmetic()
            self.leave_parenthesis()
            return f"({text})"
        if self.is_call():
            return self.function(only_numbers=True)
        self.numbers.add(self.current.text)
        return _quoted(self.column())


class _Parser(_Arithmetic):
    """Parser of formulas and their terms, by recursive descent.

    Methods that read terms also return their expansion: a set of products, each a set of columns and functions.
    """

    def parse(self) -> ParsedFormula:
        """Return the parsed formula."""
        response = self.function() if self.is_call() else self.column()
        self.expect("~", "'~' after the response")
        groups: list[GroupTerm] = []
        fixed, _ = self.terms(groups)
        if self.current.kind != "end":
            raise self.error("an operator or the end")
        return ParsedFormula(response, fixed or "1", tuple(groups), frozenset(self.columns), frozenset(self.numbers))

    def terms(self, groups: list[GroupTerm] | None = None) -> tuple[str, set[frozenset]]:
        """Read terms that are added or removed; group terms are appended to `groups`, or rejected if it is None."""
        text, expansion = "", set[frozenset]()
        sign = self.accept("+", "-")
        while True:
            if groups is not None and sign != "-" and self.is_group():
                groups.append(self.group())
                if len(groups) > MAX_TERMS:
                    raise self.error(f"at most {MAX_TERMS} terms")
            else:
                product, product_expansion = self.product()
                expansion = expansion - product_expansion if sign == "-" else expansion | product_expansion
                text += f" {sign or '+'} {product}" if text else f"{'-' if sign == '-' else ''}{product}"
                if len(expansion) > MAX_TERMS:
                    raise self.error(f"at most {MAX_TERMS} terms")
            sign = self.accept("+", "-")
            if sign is None:
                return text, expansion

    def is_group(self) -> bool:
        """Return True if a group term comes next: a parenthesis with a bar that is not in an inner parenthesis."""
        if self.current.text != "(" or self.current.kind != "sign":
            return False
        depth = 0
        for token in self.tokens[self.position :]:
            if token.kind == "sign":
                depth += {"(": 1, ")": -1}.get(token.text, 0)
                if depth == 1 and token.text in ("|", "||"):
                    return True
            if depth == 0:
                return False
        return False

    def group(self) -> GroupTerm:
        """Read a group term."""
        self.position += 1
        columns, _ = self.terms()
        bar = self.accept("|", "||")
        if bar is None:
            raise self.error("'|' and the groups")
        walk = self.is_call() and self.current.text == "walk"
        if walk:
            self.position += 2
        factors = [self.column()]
        while self.accept(":"):
            factors.append(self.column())
        if walk and len(factors) > 1:
            raise self.error("walk(t) of one column")
        if walk:
            self.expect(")", "')' after the column of walk")
        hint = " Write (1 | a/b) as (1 | a) + (1 | a:b)." if self.current.text == "/" else ""
        if self.accept(")") is None:
            raise self.error("a group term such as (1 + x | group), (1 | a:b) or (x | walk(t))", hint=hint)
        return GroupTerm(columns, tuple(factors), walk, bar == "|")

    def product(self) -> tuple[str, set[frozenset]]:
        """Read interactions joined by ``*`` and ``/``."""
        text, expansion = self.interaction()
        while sign := self.accept("*", "/"):
            other_text, other_expansion = self.interaction()
            crossed = self.crossed(expansion if sign == "*" else {frozenset().union(*expansion)}, other_expansion)
            text = f"{text} {sign} {other_text}"
            expansion = expansion | crossed | (other_expansion if sign == "*" else set())
        return text, expansion

    def interaction(self) -> tuple[str, set[frozenset]]:
        """Read powers joined by ``:``."""
        text, expansion = self.power()
        while self.accept(":"):
            other_text, other_expansion = self.power()
            text, expansion = f"{text}:{other_text}", self.crossed(expansion, other_expansion)
        return text, expansion

    def crossed(self, first: set[frozenset], second: set[frozenset]) -> set[frozenset]:
        """Return the products of every term of one expansion with every term of the other."""
        if len(first) * len(second) > MAX_TERMS:
            raise self.error(f"at most {MAX_TERMS} terms")
        return {a | b for a in first for b in second}

    def power(self) -> tuple[str, set[frozenset]]:
        """Read a factor with an optional power; a power means all interactions up to that degree."""
        text, terms = self.factor()
        if self.accept("**") is None:
            return text, terms
        if self.current.kind != "number" or self.current.text not in map(str, range(1, MAX_POWER + 1)):
            raise self.error(f"a power from 1 to {MAX_POWER}")
        degree, expansion = int(self.take()), terms
        for _ in range(degree - 1):
            expansion = expansion | self.crossed(expansion, terms)
        return f"{text}**{degree}", expansion

    def factor(self) -> tuple[str, set[frozenset]]:
        """Read 0, 1, a column, a function or terms in parentheses."""
        if self.current.kind == "number":
            if self.current.text not in ("0", "1"):
                raise self.error("0 (no intercept) or 1 (intercept)")
            return self.take(), {frozenset()}
        if self.is_group():
            raise self.error("'+' before a group term")
        if self.accept("("):
            self.enter_parenthesis()
            text, terms = self.terms()
            self.leave_parenthesis()
            return f"({text})", terms
        text = self.function() if self.is_call() else _quoted(self.column())
        return text, {frozenset({text})}


def _quoted(name: str) -> str:
    """Return a column name as written in a formula, in backticks unless it is an identifier."""
    return name if re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) else f"`{name}`"


def parse(formula: str) -> ParsedFormula:
    """Parse a formula by the grammar of this module, without evaluating it.

    Parameters
    ----------
    formula : str
        ``"response ~ terms + (terms | group)"``. Groups are a column ``a``, combinations ``a:b``, or a random walk
        ``walk(t)``. ``||`` instead of ``|`` makes the effects of a group uncorrelated.

    Raises
    ------
    DataError
        For a syntax error, with its position; and for a formula of more than 10 000 characters or 1000 terms.

    Examples
    --------
    >>> parse("y ~ x + (1 + x | county)").groups[0].factors
    ('county',)
    """
    return _Parser(str(formula)).parse()


def tokens_of(formula: str) -> list[Token]:
    """Return the tokens of a formula, with an empty token at the end."""
    return _Parser(formula).tokens


def expanded(terms: str) -> set[frozenset[str]]:
    """Return the expanded terms of a right-hand side, each as the set of columns and functions in its product."""
    return _Parser(terms).terms()[1]
