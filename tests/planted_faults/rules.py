"""Faults drawn by rules from the sources of the package: eight kinds of mistake that are common in numerical code.

A fault is a part of a line or statement, and the text that replaces it. It is stored with the name of its function, so
that it is found again after the lines around it have moved.
"""

import ast
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

KINDS = ("sign", "factor", "index", "jacobian", "off_by_one", "axis", "mask", "error")
DENSITIES = re.compile(r"log_prob|log_density|log_abs_det|logpdf|log_lik|potential|log_sf|log_cdf|jacobian|deviance")
MASKS = re.compile(r"mask|keep|kept|use|good|finite|inside|valid|known|missing|inner|positive|observed")
COUNTS = re.compile(r"len\(|\.size|\.ndim|shape|num_|channel|count|index|order|rank|degree")
# Sums of texts, lists and paths: faults in them are too obvious.
NOT_NUMBERS = re.compile(r"""["'\[]|folder|path|directory""")
OTHER_AXIS = {0: 1, 1: 0, -1: 0, -2: -1, 2: 0}


@dataclass(frozen=True)
class Fault:
    """In function `where` of `path`, the `occurrence`-th text `before` (counted from 0) becomes `after`."""

    path: str
    where: str
    line: int
    kind: str
    before: str
    after: str
    occurrence: int = 0


class Source:
    """A source file with its syntax tree, addressed by bytes as `ast` does."""

    def __init__(self, path: Path):
        self.text = path.read_bytes()
        self.tree = ast.parse(self.text)
        starts = [0]
        for line in self.text.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        self._starts = starts

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Return the first byte of a node and the byte after its last."""
        return self._starts[node.lineno - 1] + node.col_offset, self._starts[node.end_lineno - 1] + node.end_col_offset

    def start_of_line(self, line: int) -> int:
        """Return the first byte of a line; lines are counted from 1."""
        return self._starts[line - 1]

    def of(self, node: ast.AST) -> str:
        """Return the text of a node."""
        start, end = self.span(node)
        return self.text[start:end].decode()


def _skipped(tree: ast.AST) -> set[ast.AST]:
    """Return nodes without effect on results: annotations, decorators, docstrings and texts."""
    roots: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            roots += [node.returns, *node.decorator_list]
            roots += [a.annotation for a in ast.walk(node.args) if isinstance(a, ast.arg)]
        elif isinstance(node, ast.ClassDef):
            roots += node.decorator_list
        elif isinstance(node, ast.AnnAssign):
            roots.append(node.annotation)
        elif isinstance(node, ast.JoinedStr):
            roots.append(node)
    return {inner for root in roots if root is not None for inner in ast.walk(root)}


def _replacements(node: ast.AST, source: Source, function: str) -> Iterator[tuple[str, ast.AST, str]]:
    """Yield kind, node and new text of every fault of one node."""
    text = source.of
    match node:
        case ast.BinOp(left, op, right) if not NOT_NUMBERS.search(text(node)):
            between = source.text[source.span(left)[1] : source.span(right)[0]].decode()
            for old, new, kind in (
                (ast.Add, "-", "sign"),
                (ast.Sub, "+", "sign"),
                (ast.Mult, "/", "factor"),
                (ast.Div, "*", "factor"),
            ):
                symbol = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}[old]
                if isinstance(op, old) and between.strip("() \n\t") == symbol:
                    whole, start = text(node), source.span(node)[0]
                    cut = source.span(left)[1] - start
                    raw = whole.encode()
                    tail = raw[cut:].replace(symbol.encode(), new.encode(), 1)
                    yield kind, node, (raw[:cut] + tail).decode()
            if isinstance(op, ast.Add | ast.Sub) and DENSITIES.search(function) and between.strip(" \n\t") in "+-":
                yield "jacobian", node, text(left)
            if isinstance(op, ast.Add | ast.Sub) and isinstance(right, ast.Constant) and right.value == 1:
                yield "off_by_one", node, text(left)
            if isinstance(op, ast.MatMult) and between.strip(" \n\t") == "@":
                yield "axis", node, f"{text(right)} @ {text(left)}"
            if isinstance(op, ast.BitAnd) and between.strip(" \n\t") == "&":
                yield "mask", node, text(left)
        case ast.UnaryOp(ast.USub(), operand):
            yield "sign", node, text(operand)
        case ast.Constant(float(value)) if value not in (0.0, float("inf")):
            yield "factor", node, repr(2.0 * value)
        case ast.Subscript(value, index, ast.Load()):
            match index:
                case ast.Constant(int(i)) if not isinstance(i, bool):
                    yield "index", index, str(i + 1)
                case ast.UnaryOp(ast.USub(), ast.Constant(int(i))):
                    yield "index", index, str(-i - 1)
                case ast.Slice():
                    for bound in (index.lower, index.upper):
                        if isinstance(bound, ast.Constant):
                            yield "off_by_one", bound, str(bound.value + 1)
                        elif isinstance(bound, ast.UnaryOp) and isinstance(bound.operand, ast.Constant):
                            yield "off_by_one", bound, str(-bound.operand.value - 1)
                case ast.Name(name) if MASKS.search(name):
                    yield "mask", node, text(value)
                case ast.Compare() | ast.UnaryOp(ast.Invert()):
                    yield "mask", node, text(value)
        # Of counts and places only: whether a real number is equal to another is seldom a question.
        case ast.Compare(_, [ast.Lt() | ast.LtE() | ast.Gt() | ast.GtE() as op], [_]) if COUNTS.search(text(node)):
            old = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}[type(op)]
            new = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}[old]
            start, cut = source.span(node)[0], source.span(node.left)[1]
            raw = text(node).encode()
            tail = raw[cut - start :].replace(old.encode(), new.encode(), 1)
            yield "off_by_one", node, (raw[: cut - start] + tail).decode()
        case ast.keyword("axis", ast.Constant(int(axis)) as value):
            yield "axis", value, str(OTHER_AXIS.get(axis, 0))
        case ast.keyword("axis", ast.UnaryOp(ast.USub(), ast.Constant(int(axis))) as value):
            yield "axis", value, str(OTHER_AXIS.get(-axis, 0))
        case ast.Attribute(value, "T" | "mT"):
            yield "axis", node, text(value)
        case ast.Call(ast.Attribute(owner, "swapaxes" | "moveaxis" | "transpose"), [first, *_]):
            yield "axis", node, text(first if text(owner) in ("np", "jnp", "xp") else owner)
        case ast.Call(ast.Attribute(_, "where"), [_, chosen, _]):
            yield "mask", node, text(chosen)
        case ast.BoolOp(ast.And(), values):
            yield "mask", node, " and ".join(f"({text(value)})" for value in values[:-1])
        case ast.Raise():
            yield "error", node, "pass"


def faults_of(path: Path, root: Path) -> Iterator[Fault]:
    """Yield every fault of one file."""
    source = Source(path)
    skipped = _skipped(source.tree)
    functions: list[tuple[str, ast.AST]] = []

    def visit(node: ast.AST, scope: str) -> Iterator[tuple[ast.AST, str, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            if child in skipped:
                continue
            inner = scope
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inner = f"{scope}.{child.name}".lstrip(".")
                functions.append((inner, child))
            yield child, inner
            yield from visit(child, inner)

    for node, scope in visit(source.tree, ""):
        for kind, target, after in _replacements(node, source, scope):
            before = source.of(target)
            if before == after or ("\n" in after and len(after) > 400):
                continue
            holder = dict(functions).get(scope, source.tree) if scope else source.tree
            start = 0 if holder is source.tree else source.span(holder)[0]
            occurrence = source.text[start : source.span(target)[0]].count(before.encode())
            yield Fault(str(path.relative_to(root)), scope, target.lineno, kind, before, after, occurrence)


def draw(package: Path, number: int, seed: int, without: tuple[Fault, ...] = ()) -> list[Fault]:
    """Draw faults from the folders of the package in turn, each of the kind that is rarest so far."""
    root, rng = package.parent, random.Random(seed)
    by_folder: dict[str, list[Fault]] = {}
    for path in sorted(package.rglob("*.py")):
        by_folder.setdefault(str(path.parent.relative_to(root)), []).extend(faults_of(path, root))
    folders = sorted(by_folder)
    taken = {(fault.path, fault.where, fault.before) for fault in without}
    drawn: list[Fault] = []
    used: Counter[str] = Counter()
    while len(drawn) < number:
        folder = folders[len(drawn) % len(folders)]
        free = [f for f in by_folder[folder] if (f.path, f.where, f.before) not in taken]
        here = Counter(fault.kind for fault in drawn if str(Path(fault.path).parent) == folder)
        kinds = sorted(sorted({f.kind for f in free}), key=lambda kind: (here[kind], used[kind], rng.random()))
        # A file first, so that long ones do not take all.
        choices = [f for f in free if f.kind == kinds[0]]
        path = rng.choice(sorted({f.path for f in choices}))
        fault = rng.choice([f for f in choices if f.path == path])
        drawn.append(fault)
        taken.add((fault.path, fault.where, fault.before))
        used[fault.kind] += 1
    return drawn


def _found(fault: Fault, root: Path) -> tuple[Source, ast.AST, int]:
    """Return the file of a fault, the class or function it is in and the byte where its text begins.

    Raises
    ------
    LookupError
        If the text is not in its function any more.
    """
    path = root / fault.path
    if not path.exists():
        raise LookupError(f"{fault.path} is gone")
    source = Source(path)
    holder: ast.AST = source.tree
    for name in filter(None, fault.where.split(".")):
        named = [n for n in ast.walk(holder) if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name]
        if not named:
            raise LookupError(f"{fault.path} has no {fault.where}")
        holder = named[0]
    start, end = (0, len(source.text)) if holder is source.tree else source.span(holder)
    place = start - 1
    for _ in range(fault.occurrence + 1):
        place = source.text.find(fault.before.encode(), place + 1, end)
        if place < 0:
            raise LookupError(f"{fault.before!r} is not in {fault.where or fault.path} any more")
    return source, holder, place


def plant(fault: Fault, root: Path) -> None:
    """Change the file under `root`.

    Raises
    ------
    LookupError
        If the text is not in its function any more.
    """
    source, _, place = _found(fault, root)
    changed = source.text[:place] + fault.after.encode() + source.text[place + len(fault.before.encode()) :]
    ast.parse(changed)
    (root / fault.path).write_bytes(changed)


def probe(faults: Sequence[Fault | None], root: Path, call: str) -> None:
    """Insert calls into the files under `root` that record when the code of a fault is reached.

    What is outside functions is reached with the functions that use the name it is assigned to, or a name that is
    assigned from that one; without a name, with every function of the file.

    Parameters
    ----------
    faults
        The number of a fault is its place here; None is passed over.
    root
        Folder that holds the package.
    call
        Text of the call, with ``{}`` for the number.
    """
    inserted: dict[Path, list[tuple[int, str]]] = {}
    sources = {path: Source(path) for path in sorted((root / "hbm_jax").rglob("*.py"))}
    for number, fault in enumerate(faults):
        if fault is None:
            continue
        source, holder, place = _found(fault, root)
        text = call.format(number)
        if isinstance(holder, ast.FunctionDef):
            opening, closing = (f"{text}; ", "") if fault.kind == "error" else (f"({text} or (", "))")
            inserted.setdefault(root / fault.path, []).append((place, opening))
            inserted[root / fault.path].append((place + len(fault.before.encode()), closing))
            continue
        names = _names_assigned(source, place)
        for path, other in sources.items() if names else [(root / fault.path, source)]:
            for function in (n for n in ast.walk(other.tree) if isinstance(n, ast.FunctionDef)):
                used = {n.id for n in ast.walk(function) if isinstance(n, ast.Name)}
                used |= {n.attr for n in ast.walk(function) if isinstance(n, ast.Attribute)}
                first = function.body[1 if ast.get_docstring(function) and len(function.body) > 1 else 0]
                start = min([first.lineno, *(d.lineno for d in getattr(first, "decorator_list", []))])
                if (not names or used & names) and start > function.lineno:
                    line = f"{' ' * first.col_offset}{text}\n"
                    inserted.setdefault(path, []).append((other.start_of_line(start), line))
    for path, changes in inserted.items():
        raw = path.read_bytes()
        # From the end, so that places stay; what closes at a place before what opens there.
        for place, text in sorted(changes, key=lambda change: (change[0], change[1] != "))"), reverse=True):
            raw = raw[:place] + text.encode() + raw[place:]
        ast.parse(raw)
        path.write_bytes(raw)


def _names_assigned(source: Source, place: int) -> set[str]:
    """Names outside functions that are assigned at a place of a file, or from a name that is."""
    names: set[str] = set()
    for statement in ast.walk(source.tree):
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            start, end = source.span(statement)
            used = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
            if start <= place < end or (statement in source.tree.body and names & used):
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                names |= {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    return names
