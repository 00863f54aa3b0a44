"""The grammar of formulas, by which they are read before anything is computed.

A formula is data, read from tables' owners, configuration files and stored results, so nothing of it is run that the
grammar does not know. ``y ~ x + (1 + x | county)`` has the columns 1 and x for all points, and 1 and x once more for
every county. The grammar::

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
# Functions of one argument, of every number by itself.
OF_NUMBERS = {
    name: getattr(np, name)
    for name in ("abs", "arcsinh", "cos", "exp", "expm1", "log", "log10", "log1p", "log2", "sin", "sqrt", "tan", "tanh")
}
# Others, which formulaic has: how many arguments they take.
OF_COLUMNS = {"C": 1, "I": 1, "center": 1, "poly": 2, "scale": 1, "standardize": 1}
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
        Formula of what varies.
    factors : tuple of str
        Columns whose combinations are the groups.
    walk : bool
        Whether the groups are in an order along which the effects walk.
    correlated : bool
        Whether the effects of a group are correlated: not where the bar is double.
    """

    columns: str
    factors: tuple[str, ...]
    walk: bool = False
    correlated: bool = True


@dataclass(frozen=True)
class ParsedFormula:
    """Response, formula of what all points share, terms of groups; all their columns, and those they compute with."""

    response: str
    fixed: str
    groups: tuple[GroupTerm, ...]
    columns: frozenset[str]
    numbers: frozenset[str]


@dataclass(frozen=True)
class Token:
    """A word or sign of a formula, and where it starts."""

    kind: str
    text: str
    start: int


@dataclass
class _Parser:
    """Reads tokens from left to right; each method reads one rule of the grammar and returns its text."""

    formula: str
    tokens: list[Token] = field(default_factory=list)
    at: int = 0
    depth: int = 0
    columns: set[str] = field(default_factory=set)
    numbers: set[str] = field(default_factory=set)

    def __post_init__(self):
        if len(self.formula) > MAX_LENGTH:
            raise DataError(f"formula: expected at most {MAX_LENGTH} characters; found {len(self.formula)}.")
        place = 0
        while self.formula[place:].strip():
            match = TOKEN.match(self.formula, place)
            if match is None:
                start = place + len(self.formula[place:]) - len(self.formula[place:].lstrip())
                letter = self.formula[start]
                more = {"{": " Write I(x - 1) for {x - 1}.", '"': " Write `a name` for a column."}.get(letter, "")
                raise self.error("a column, a number, an operator or a function", start, repr(letter), more)
            kind = match.lastgroup
            assert kind is not None
            self.tokens.append(Token(kind, match[kind], match.start(kind) - (kind == "quoted")))
            place = match.end()
        self.tokens.append(Token("end", "", len(self.formula)))

    @property
    def next(self) -> Token:
        return self.tokens[self.at]

    def error(self, expected: str, start: int | None = None, found: str | None = None, more: str = "") -> DataError:
        """Name what was expected, and the place in the formula."""
        start = self.next.start if start is None else start
        found = found or ("its end" if self.next.kind == "end" else repr(self.next.text))
        left, right = max(0, start - 40), start + 20
        shown = f"{'...' * (left > 0)}{self.formula[left:start]}[here]{self.formula[start:right]}"
        more = f"{'...' * (right < len(self.formula))}, {EXAMPLE}.{more}"
        return DataError(f"formula: expected {expected}; found {found} at character {start + 1}: {shown}{more}")

    def take(self, *signs: str) -> str | None:
        """Go past one of these signs, if it comes next."""
        if self.next.kind == "sign" and self.next.text in signs:
            self.at += 1
            return self.tokens[self.at - 1].text
        return None

    def expect(self, sign: str, expected: str) -> None:
        if self.take(sign) is None:
            raise self.error(expected)

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"at most {MAX_DEPTH} parentheses within each other")

    def column(self) -> str:
        """Return a column's name and go past it."""
        if self.next.kind not in ("name", "quoted"):
            raise self.error("the name of a column")
        self.columns.add(self.next.text)
        self.at += 1
        return self.tokens[self.at - 1].text

    def whole(self) -> ParsedFormula:
        response = self.function() if self.is_call() else self.column()
        self.expect("~", "'~' after the response")
        groups: list[GroupTerm] = []
        fixed, _ = self.terms(groups)
        if self.next.kind != "end":
            raise self.error("an operator or the end")
        return ParsedFormula(response, fixed or "1", tuple(groups), frozenset(self.columns), frozenset(self.numbers))

    def terms(self, groups: list[GroupTerm] | None = None) -> tuple[str, set[frozenset]]:
        """Terms that are added or taken away; `groups` collects those of groups, where these may stand."""
        text, found = "", set[frozenset]()
        sign = self.take("+", "-")
        while True:
            if groups is not None and sign != "-" and self.is_group():
                groups.append(self.group())
                if len(groups) > MAX_TERMS:
                    raise self.error(f"at most {MAX_TERMS} terms")
            else:
                product, terms = self.product()
                found = found - terms if sign == "-" else found | terms
                text += f" {sign or '+'} {product}" if text else f"{'-' if sign == '-' else ''}{product}"
                if len(found) > MAX_TERMS:
                    raise self.error(f"at most {MAX_TERMS} terms")
            sign = self.take("+", "-")
            if sign is None:
                return text, found

    def is_group(self) -> bool:
        """Return whether the next parenthesis is a term of groups: one with a bar outside inner parentheses."""
        if self.next.text != "(" or self.next.kind != "sign":
            return False
        depth = 0
        for token in self.tokens[self.at :]:
            if token.kind == "sign":
                depth += {"(": 1, ")": -1}.get(token.text, 0)
                if depth == 1 and token.text in ("|", "||"):
                    return True
            if depth == 0:
                return False
        return False

    def group(self) -> GroupTerm:
        self.at += 1
        columns, _ = self.terms()
        bar = self.take("|", "||")
        if bar is None:
            raise self.error("'|' and the groups")
        walk = self.is_call() and self.next.text == "walk"
        if walk:
            self.at += 2
        factors = [self.column()]
        while self.take(":"):
            factors.append(self.column())
        if walk and len(factors) > 1:
            raise self.error("walk(t) of one column")
        if walk:
            self.expect(")", "')' after the column of walk")
        more = " Write (1 | a/b) as (1 | a) + (1 | a:b)." if self.next.text == "/" else ""
        if self.take(")") is None:
            raise self.error("terms of groups as in (1 + x | group), (1 | a:b) or (x | walk(t))", more=more)
        return GroupTerm(columns, tuple(factors), walk, bar == "|")

    def product(self) -> tuple[str, set[frozenset]]:
        text, found = self.interaction()
        while sign := self.take("*", "/"):
            other, terms = self.interaction()
            crossed = self.crossed(found if sign == "*" else {frozenset().union(*found)}, terms)
            text, found = f"{text} {sign} {other}", found | crossed | (terms if sign == "*" else set())
        return text, found

    def interaction(self) -> tuple[str, set[frozenset]]:
        text, found = self.power()
        while self.take(":"):
            other, terms = self.power()
            text, found = f"{text}:{other}", self.crossed(found, terms)
        return text, found

    def crossed(self, some: set[frozenset], others: set[frozenset]) -> set[frozenset]:
        """Every term of one set with every term of the other."""
        if len(some) * len(others) > MAX_TERMS:
            raise self.error(f"at most {MAX_TERMS} terms")
        return {a | b for a in some for b in others}

    def power(self) -> tuple[str, set[frozenset]]:
        text, terms = self.factor()
        if self.take("**") is None:
            return text, terms
        if self.next.kind != "number" or self.next.text not in map(str, range(1, MAX_POWER + 1)):
            raise self.error(f"a power from 1 to {MAX_POWER}")
        degree, found = int(self.next.text), terms
        self.at += 1
        for _ in range(degree - 1):
            found = found | self.crossed(found, terms)
        return f"{text}**{degree}", found

    def factor(self) -> tuple[str, set[frozenset]]:
        if self.next.kind == "number":
            if self.next.text not in ("0", "1"):
                raise self.error("0 or 1, without and with an intercept")
            self.at += 1
            return self.tokens[self.at - 1].text, {frozenset()}
        if self.is_group():
            raise self.error("'+' before a term of groups")
        if self.take("("):
            self.deeper()
            text, terms = self.terms()
            self.expect(")", "an operator or ')'")
            self.depth -= 1
            return f"({text})", terms
        text = self.function() if self.is_call() else _quoted(self.column())
        return text, {frozenset({text})}

    def is_call(self) -> bool:
        return self.next.kind == "name" and self.tokens[self.at + 1].text == "("

    def function(self, only_numbers: bool = False) -> str:
        """Read a function and its arguments."""
        name = self.next.text
        known = OF_NUMBERS if only_numbers else OF_NUMBERS.keys() | OF_COLUMNS.keys()
        if name not in known:
            raise self.error(f"a function, one of {listed(sorted(known))}{did_you_mean(name, known)}")
        self.at += 2
        self.deeper()
        arguments = [_quoted(self.column()) if name == "C" else self.arithmetic()]
        while self.take(","):
            arguments.append(self.arithmetic())
        self.depth -= 1
        wanted = OF_COLUMNS.get(name, 1)
        if len(arguments) != wanted:
            raise self.error(f"{wanted} argument{'s' * (wanted > 1)} of {name}", found=str(len(arguments)))
        if name == "poly" and arguments[1] not in map(str, range(1, MAX_POWER + 1)):
            raise self.error(f"poly(x, n) with n from 1 to {MAX_POWER}", found=arguments[1])
        self.expect(")", "')'")
        return f"{name}({', '.join(arguments)})"

    def arithmetic(self) -> str:
        """Numbers, columns and what is computed from them."""
        text = ""
        while True:
            while sign := self.take("-", "+"):
                text += sign
            start = self.at
            text += self.operand()
            if self.next.text == "**" and not any(t.kind in ("name", "quoted") for t in self.tokens[start : self.at]):
                raise self.error("a column to take a power of")  # 9**9**9 is a number that no computer can hold
            if self.take("**"):
                text += f" ** {self.exponent()}"
            sign = self.take("+", "-", "*", "/")
            if sign is None:
                return text
            text += f" {sign} "

    def exponent(self) -> str:
        sign = self.take("-") or ""
        if self.next.kind != "number" or float(self.next.text) > MAX_POWER:
            raise self.error(f"a number up to {MAX_POWER} as power")
        return sign + self.number()

    def number(self) -> str:
        text = self.next.text
        if len(text) > MAX_DIGITS:
            raise self.error(f"numbers of at most {MAX_DIGITS} characters", found=f"one of {len(text)}")
        self.at += 1
        return str(int(text)) if text.isdigit() else text

    def operand(self) -> str:
        if self.next.kind == "number":
            return self.number()
        if self.take("("):
            self.deeper()
            text = self.arithmetic()
            self.expect(")", "an operator or ')'")
            self.depth -= 1
            return f"({text})"
        if self.is_call():
            return self.function(only_numbers=True)
        self.numbers.add(self.next.text)
        return _quoted(self.column())


def _quoted(name: str) -> str:
    """Write a column in a formula: between backticks where the name is not a plain word."""
    return name if re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) else f"`{name}`"


def parse(formula: str) -> ParsedFormula:
    """Take a formula apart, by the grammar of this module; nothing of it is evaluated.

    Parameters
    ----------
    formula : str
        ``"response ~ terms + (terms | group)"``. Groups: ``a``, combinations ``a:b``, and ``walk(t)``. ``||`` for
        effects that are not correlated.

    Raises
    ------
    DataError
        For text that is no such formula, with the place where it is not; and for one of more than 10 000 characters or
        1000 terms.

    Examples
    --------
    >>> parse("y ~ x + (1 + x | county)").groups[0].factors
    ('county',)
    """
    return _Parser(str(formula)).whole()


def tokens_of(formula: str) -> list[Token]:
    """Return the words and signs of a formula, with an empty one at the end."""
    return _Parser(formula).tokens


def expanded(terms: str) -> set[frozenset[str]]:
    """Return the terms of a right-hand side, each as the set of the columns and functions whose product it is."""
    return _Parser(terms).terms()[1]
