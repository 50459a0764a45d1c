"""Leaves out of a program what it cannot reach from its entry: the encoder's half of a decoder, types, helpers.

A name stands for everything in the program that has it: a function is needed if code that is needed holds its name,
whatever that refers to, and a method if it holds an attribute of its name; a string counts as both. So this may keep
too much. It does not see names that are put together at run time. One thing is told apart: `x.encode()` is no use of a
method `encode` that wants arguments.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator, Mapping

from .stripping import PLAIN_BASES, Statement, Text, is_type_checking, keep_names

_Function = (ast.FunctionDef, ast.AsyncFunctionDef)
_DATA_BASES = PLAIN_BASES | {"NamedTuple", "Exception"}
"""Foreign bases that call none of a class's methods but those with a name of Python's own."""
_DOT, _NO_ARGUMENTS = ".", "()"
"""Before a name: an attribute. Behind it: one that is called without arguments."""


def code_of(node: ast.AST, without: Collection[ast.AST] = ()) -> Iterator[ast.AST]:
    """A node and those in it: not annotations, docstrings, imports under `if TYPE_CHECKING:`, nor nodes `without`."""
    if isinstance(node, ast.If) and is_type_checking(node):
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and child not in without:
                yield from code_of(child, without)


def identifiers(nodes: Iterable[ast.AST]) -> set[str]:
    """What code holds: `name`, `.attribute`, `.method()` of a call without arguments."""
    found: set[str] = set()
    called: set[ast.AST] = set()
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.args + node.keywords:
            called.add(node.func)
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(_DOT + node.attr + _NO_ARGUMENTS * (node in called))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            found |= {node.value, _DOT + node.value}
    return found


class _Unit:
    """Something that a module or a class defines: it is needed once one of its names is."""

    def __init__(self, module: str, statement: Statement, names: set[str], owner: _Unit | None = None) -> None:
        self.module, self.statement, self.names, self.owner = module, statement, names, owner
        self.needed = False
        self.methods: list[_Unit] = []
        """Of a class, those that are units of their own."""

    def code(self) -> Iterator[ast.AST]:
        return code_of(self.statement, {method.statement for method in self.methods})


def remove_unused(texts: Mapping[str, Text], entry: str) -> None:
    """Remove what is not reached from the names at `entry` in any module, and imports that nothing needs any longer.

    texts: the modules of a package without folders, by their names.
    """
    units: list[_Unit] = []
    imports: list[tuple[str, ast.Import | ast.ImportFrom]] = []
    wanted = {entry}
    code: dict[str, list[ast.AST]] = {module: [] for module in texts}
    """The nodes of each module that are needed, but for imports at its top."""
    classes = {s.name for t in texts.values() for s in t.tree.body if isinstance(s, ast.ClassDef)}
    for module, text in texts.items():
        for statement in text.tree.body:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                imports.append((module, statement))
                wanted |= {alias.name for alias in statement.names if alias.asname}
            elif names := _defined(statement):
                units.append(unit := _Unit(module, statement, names))
                if isinstance(statement, ast.ClassDef):
                    methods = [s for s in statement.body if isinstance(s, _Function) and _may_go(s, statement, classes)]
                    unit.methods = [_Unit(module, method, {method.name}, unit) for method in methods]
                    units += unit.methods
            else:
                code[module] += code_of(statement)
    wanted = wanted.union(*(identifiers(nodes) for nodes in code.values()))
    while fresh := [unit for unit in units if not unit.needed and _is_needed(unit, wanted)]:
        for unit in fresh:
            unit.needed = True
            nodes = list(unit.code())
            code[unit.module] += nodes
            wanted |= identifiers(nodes)
    for unit in units:
        if not unit.needed:
            texts[unit.module].remove(unit.statement)
    _remove_imports(texts, imports, code)


def _is_needed(unit: _Unit, wanted: set[str]) -> bool:
    if unit.owner and not unit.owner.needed:
        return False
    attributes = {_DOT + name for name in unit.names}
    statement = unit.statement
    required = 0
    if unit.owner and isinstance(statement, _Function) and not statement.decorator_list:
        arguments = statement.args
        required = len(arguments.posonlyargs + arguments.args) - len(arguments.defaults) - 1
    if required < 1:
        attributes |= {name + _NO_ARGUMENTS for name in attributes}
    return bool(attributes & wanted or (not unit.owner and unit.names & wanted))


def _may_go(method: ast.FunctionDef | ast.AsyncFunctionDef, owner: ast.ClassDef, classes: set[str]) -> bool:
    """Whether a method runs only where the program calls it by its name."""
    return not (method.name.startswith("__") and method.name.endswith("__")) and not calls_of_others(owner, classes)


def calls_of_others(node: ast.ClassDef, classes: set[str]) -> bool:
    """Whether code outside the program may call a class's methods by their names: it has a base from elsewhere."""
    return not {getattr(base, "id", "") for base in node.bases} <= classes | _DATA_BASES


def _defined(statement: Statement) -> set[str]:
    """Names of a definition that does nothing but define."""
    targets: list[ast.expr]
    if isinstance(statement, (*_Function, ast.ClassDef)):
        return {statement.name}
    if isinstance(statement, ast.AnnAssign):
        targets, value = [statement.target], statement.value
    elif isinstance(statement, ast.Assign):
        targets, value = [*statement.targets], statement.value
    else:
        return set()
    names = {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
    plain = all(isinstance(target, (ast.Name, ast.Tuple)) for target in targets)
    return names if plain and value is not None and _is_pure(value) else set()


def _is_pure(value: ast.expr) -> bool:
    """Whether computing it changes nothing: literals, arithmetic, types."""
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name) and value.func.id in ("TypeVar", "float", "frozenset", "range")
    pure = (
        ast.Constant, ast.Name, ast.Attribute, ast.Subscript, ast.Tuple, ast.List, ast.Set, ast.Dict, ast.BinOp,
        ast.UnaryOp, ast.Call, ast.keyword, ast.expr_context, ast.operator, ast.unaryop,
    )  # fmt: skip
    return all(
        isinstance(node, pure) and (not isinstance(node, ast.Call) or _is_pure(node)) for node in ast.walk(value)
    )


def _remove_imports(
    texts: Mapping[str, Text], imports: list[tuple[str, ast.Import | ast.ImportFrom]], code: Mapping[str, list[ast.AST]]
) -> None:
    """Keep what the code of a module names, and what needed imports of other modules take from it."""
    used = {module: {n.id for n in nodes if isinstance(n, ast.Name)} for module, nodes in code.items()}
    late = [(n, n.names) for nodes in code.values() for n in nodes if isinstance(n, ast.ImportFrom)]
    while True:
        kept = [
            (module, node, [a for a in node.names if (a.asname or a.name).partition(".")[0] in used[module]])
            for module, node in imports
        ]
        taken = [(n.module, a.name) for n, aliases in late for a in aliases if n.level == 1]
        taken += [
            (n.module, a.name) for _, n, aliases in kept for a in aliases if isinstance(n, ast.ImportFrom) and n.level
        ]
        more = [(module, name) for module, name in taken if module in used and name not in used[module]]
        if not more:
            break
        for module, name in more:
            if module is not None:
                used[module].add(name)
    for module, node, aliases in kept:
        if not (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            keep_names(texts[module], node, aliases)
