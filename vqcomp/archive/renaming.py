"""Gives local variables, constants and private attributes short names. Names of modules, functions, classes and other
attributes stay, so that a traceback is still of use.

A name stays if anything else could know it. Of local variables: a parameter that any call in the program names; what is
imported, defined or matched by a pattern in a function; what a class in a function holds; all of a function that looks
its variables up by name. Of constants, which are module-level variables in capitals: one that is an attribute, a string
or a local variable anywhere. Of private attributes, which begin with an underscore: one that is anything but `self._x`
anywhere, or that a class with a base from elsewhere has.
"""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from string import ascii_letters, ascii_uppercase

from .stripping import Text
from .unused import calls_of_others

Function = (ast.FunctionDef, ast.AsyncFunctionDef)
_SCOPES = (*Function, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_LOOKS_UP = {"locals", "vars", "dir", "eval", "exec"}
_IN_EXPRESSION = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\w.]*|\.\s*[^\W\d]\w*|([^\W\d]\w*)(\s*=(?!=))?")
"""What may hold letters; group 1 is a name, and group 2 makes it a keyword of a call."""


def rename(texts: Mapping[str, Text]) -> None:
    """Rename in all modules of a program, whose functions others call by positional arguments alone."""
    constants = _rename_constants(texts)
    keywords: set[str] = set()
    for text in texts.values():
        found = [node.arg for node in text.nodes if isinstance(node, ast.keyword)]
        keywords.update(name for name in found if name)
        if None in found:  # `**`: its names are those that a call gave, or strings
            keywords.update(n.value for n in text.nodes if isinstance(n, ast.Constant) and isinstance(n.value, str))
    classes = {s.name for text in texts.values() for s in text.tree.body if isinstance(s, ast.ClassDef)}
    _rename_attributes(texts, classes)
    for text in texts.values():
        for statement in text.tree.body:
            inside, foreign = [statement], False
            if isinstance(statement, ast.ClassDef):
                inside, foreign = statement.body, calls_of_others(statement, classes)
            for function in inside:
                if isinstance(function, Function) and not text.removed(statement) and not text.removed(function):
                    _Locals(text, function, None if foreign else keywords).rename(constants)


def _candidates(letters: str) -> Iterator[str]:
    for length in (1, 2, 3):
        for name in map("".join, product(letters, *[ascii_letters] * (length - 1))):
            if not keyword.iskeyword(name):
                yield name


# ---- f-strings


def fstring_names(text: str) -> list[tuple[int, int]] | None:
    """Where the names in an f-string's expressions are; None where its text matters, as in `{x=}`.

    Trees have no reliable positions there before Python 3.12. A string in an expression is taken to hold no names.
    """
    found: list[tuple[int, int]] = []
    body = text.lstrip("rRfF")
    quote = body[:3] if body[:3] in ('"""', "'''") else body[:1]
    i, end = len(text) - len(body) + len(quote), len(text) - len(quote)
    depth = 0  # of `{` whose format has begun
    while i < end:
        if text[i : i + 2] in ("{{", "}}") and depth == 0:
            i += 2
        elif text[i] == "}":
            depth -= 1
            i += 1
        elif text[i] == "{":
            stop = _expression_end(text, i + 1, end)
            if re.search(r"[^=!<>]=\s*$", text[i + 1 : stop]):
                return None
            for match in _IN_EXPRESSION.finditer(text, i + 1, stop):
                if match[1] and not match[2] and not keyword.iskeyword(match[1]):
                    found.append(match.span(1))
            depth += 1
            i = stop
        else:
            i += 1
    return found


def _expression_end(text: str, start: int, end: int) -> int:
    """Where the expression that begins at `start` ends: at `}`, `!r` or `:`, outside brackets and strings."""
    depth, quote = 0, ""
    for i in range(start, end):
        c = text[i]
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        elif depth == 0 and (c in "}:" or (c == "!" and text[i + 1] != "=")):
            return i
        else:
            depth += (c in "([{") - (c in ")]}")
    return end


def _fstrings(text: Text, node: ast.JoinedStr) -> list[int]:
    """The tokens that an f-string and its neighbours consist of."""
    tokens = range(text.first(node), text.last(node) + 1)
    return [i for i in tokens if "f" in text.tokens[i].text.lower().partition('"')[0].partition("'")[0]]


def _names_inside(node: ast.AST) -> list[str]:
    inside = list(ast.walk(node))
    return sorted([n.id for n in inside if isinstance(n, ast.Name)] + [n.arg for n in inside if isinstance(n, ast.arg)])


def _is_readable(text: Text, node: ast.JoinedStr) -> bool:
    """Whether exactly the names that are in an f-string have been found in its text."""
    names: list[str] = []
    for token in _fstrings(text, node):
        string = text.tokens[token].text
        spans = fstring_names(string)
        if spans is None:
            return False
        names += [string[a:b] for a, b in spans]
    return sorted(names) == _names_inside(node)


def _rename_inside(text: Text, token: int, names: Mapping[str, str]) -> None:
    string = text.current(token)
    for a, b in reversed(fstring_names(string) or []):
        string = string[:a] + names.get(string[a:b], string[a:b]) + string[b:]
    text.edit(token, string)


# ---- constants


def _outer_fstrings(node: ast.AST) -> Iterator[ast.JoinedStr]:
    if isinstance(node, ast.JoinedStr):
        yield node
    else:
        for child in ast.iter_child_nodes(node):
            yield from _outer_fstrings(child)


def _rename_constants(texts: Mapping[str, Text]) -> dict[str, str]:
    """Rename them everywhere; returns the new names. Those that occur most get the shortest."""
    defined: set[str] = set()
    count: dict[str, int] = {}
    fixed: set[str] = set()
    strings = {module: list(_outer_fstrings(text.tree)) for module, text in texts.items()}
    for module, text in texts.items():
        top: set[ast.AST] = set()
        for statement in text.tree.body:
            if isinstance(statement, (ast.Assign, ast.AnnAssign)) and not text.removed(statement):
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                top |= {n for t in targets for n in ast.walk(t) if isinstance(n, ast.Name) and n.id.isupper()}
        defined |= {n.id for n in top if isinstance(n, ast.Name)}
        for node in text.nodes:
            if isinstance(node, ast.Name):
                count[node.id] = count.get(node.id, 0) + 1
                if not isinstance(node.ctx, ast.Load) and node not in top:
                    fixed.add(node.id)
            elif isinstance(node, (ast.Attribute, ast.arg, ast.alias, ast.Constant, *Function, ast.ClassDef)):
                relative = isinstance(node, ast.alias) and not node.asname and node.name.isupper()
                known = [getattr(node, field, None) for field in ("attr", "arg", "asname", "name", "value")]
                fixed |= {name for name in known if isinstance(name, str) and not relative}
            elif isinstance(node, (ast.Global, ast.Nonlocal)):
                fixed |= set(node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                fixed |= {alias.name for alias in node.names}
        for node in strings[module]:
            if text.holds(node) and not _is_readable(text, node):
                fixed |= set(_names_inside(node))
    wanted = sorted(defined - fixed, key=lambda name: (-count[name], name))
    free = (name for name in _candidates(ascii_uppercase) if name not in count and name not in fixed)
    names = dict(zip(wanted, free))
    for module, text in texts.items():
        inside = {n for string in strings[module] for n in ast.walk(string)}
        for node in text.nodes:
            name = node.id if isinstance(node, ast.Name) else node.name if isinstance(node, ast.alias) else ""
            if name in names and node not in inside and text.holds(node):
                text.edit(text.first(node), names[name])
        for string in strings[module]:
            if text.holds(string):
                for token in _fstrings(text, string):
                    _rename_inside(text, token, names)
    return names


# ---- private attributes


def _rename_attributes(texts: Mapping[str, Text], classes: set[str]) -> None:
    """Rename them everywhere; those that occur most get the shortest names. classes: the program's own."""
    uses: dict[str, list[tuple[Text, int]]] = {}
    fixed: set[str] = set()
    for text in texts.values():
        foreign: list[ast.AST] = [n for n in text.nodes if isinstance(n, ast.ClassDef) and calls_of_others(n, classes)]
        foreign += [node for node in text.nodes if isinstance(node, ast.JoinedStr)]
        outside = {inner for node in foreign for inner in ast.walk(node)}
        for node in text.nodes:
            if isinstance(node, ast.Attribute):
                own = isinstance(node.value, ast.Name) and node.value.id == "self" and node not in outside
                if own and node.attr.startswith("_") and not node.attr.startswith("__"):
                    uses.setdefault(node.attr, []).append((text, text.last(node)))
                else:
                    fixed.add(node.attr)
            else:
                known = [getattr(node, field, None) for field in ("id", "arg", "asname", "name", "value")]
                fixed |= {name for name in known if isinstance(name, str)}
    wanted = sorted(uses.keys() - fixed, key=lambda name: (-len(uses[name]), name))
    free = (name for name in _candidates(ascii_letters) if name not in fixed and name not in uses)
    for name, new in zip(wanted, free):
        for text, token in uses[name]:
            if text.current(token) == name:
                text.edit(token, new)


# ---- local variables


class _Locals:
    """The variables of a function and of all that is nested in it: one new name for each old one."""

    def __init__(self, text: Text, function: ast.FunctionDef | ast.AsyncFunctionDef, keywords: set[str] | None) -> None:
        """keywords: names of parameters to keep; None keeps all."""
        self.text, self.keywords = text, keywords
        self.places: list[tuple[str, int]] = []
        """(name, token) of every use outside f-strings."""
        self.strings: list[int] = []
        self.fixed: set[str] = set()
        bound = self._scope(function, [])
        used = {name for name, _ in self.places}
        self.fixed |= used - bound
        if self.fixed & _LOOKS_UP:
            self.fixed |= bound

    def rename(self, constants: Mapping[str, str]) -> None:
        """In the order of their first appearance. constants: new names that are used already."""
        taken = self.fixed | {constants[name] for name in self.fixed if name in constants}
        free = (name for name in _candidates(ascii_letters) if name not in taken)
        names: dict[str, str] = {}
        for name, token in self.places:
            if name not in self.fixed:
                if name not in names:
                    names[name] = next(free)
                self.text.edit(token, names[name])
        for token in self.strings:
            _rename_inside(self.text, token, names)

    def _scope(self, node: ast.AST, outer: list[set[str]]) -> set[str]:
        """Look through a scope; returns what it and those in it bind. A name that it does not find is fixed."""
        bound: set[str] = set()
        uses: set[str] = set()
        inner: list[ast.AST] = []
        if isinstance(node, (*Function, ast.Lambda)):
            self._parameters(node.args, bound)
            self._visit(node.body if isinstance(node.body, list) else [node.body], bound, uses, inner)
        else:
            first = node.generators[0]  # type: ignore[attr-defined]
            rest = [child for child in ast.iter_child_nodes(node) if child is not first]
            # The first iterable belongs to the scope around.
            self._visit([first.target, *first.ifs, *rest], bound, uses, inner)
        scopes, everything = [*outer, bound], set(bound)
        for child in inner:
            everything |= self._scope(child, scopes)
        self.fixed |= {name for name in uses if not any(name in scope for scope in scopes)}
        return everything

    def _parameters(self, arguments: ast.arguments, bound: set[str]) -> None:
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        stars = [arg for arg in (arguments.vararg, arguments.kwarg) if arg]
        for arg in named + stars:
            bound.add(arg.arg)
            self._place(arg.arg, arg)
        self.fixed |= {arg.arg for arg in named if self.keywords is None or arg.arg in self.keywords}

    def _place(self, name: str, node: ast.AST) -> None:
        if not self._in_string:
            self.places.append((name, self.text.first(node)))

    _in_string = False

    def _visit(self, nodes: Iterable[ast.AST], bound: set[str], uses: set[str], inner: list[ast.AST]) -> None:
        """Collect the names of one scope; scopes within go to `inner`."""
        for node in nodes:
            if isinstance(node, ast.Name):
                (uses if isinstance(node.ctx, ast.Load) else bound).add(node.id)
                self._place(node.id, node)
            elif isinstance(node, ast.JoinedStr) and not self._in_string:
                if not _is_readable(self.text, node) or any(isinstance(n, _SCOPES) for n in ast.walk(node)):
                    self.fixed |= set(_names_inside(node))
                else:
                    self.strings += _fstrings(self.text, node)
                    self._in_string = True
                    self._visit(ast.iter_child_nodes(node), bound, uses, inner)
                    self._in_string = False
            elif isinstance(node, _SCOPES):
                inner.append(node)
                self._visit(self._around(node, bound), bound, uses, inner)
            elif isinstance(node, ast.ClassDef):
                self.fixed |= {node.name, *_names_inside(node)}
            elif isinstance(node, (ast.Global, ast.Nonlocal)):
                self.fixed |= set(node.names)
            elif isinstance(node, ast.AnnAssign):
                self._visit([node.target, *([node.value] if node.value else [])], bound, uses, inner)
            elif isinstance(node, ast.ExceptHandler):
                self._visit([node.type] if node.type else [], bound, uses, inner)
                if node.name:
                    bound.add(node.name)
                    token = self.text.find(self.text.first(node), ("as",))
                    self.places.append((node.name, token + 1))
                self._visit(node.body, bound, uses, inner)
            else:
                for name in (getattr(node, field, None) for field in ("name", "rest", "asname")):
                    if isinstance(name, str):  # of an import or a pattern
                        self.fixed.add(name.partition(".")[0])
                self._visit(ast.iter_child_nodes(node), bound, uses, inner)

    def _around(self, node: ast.AST, bound: set[str]) -> list[ast.AST]:
        """What of a nested scope belongs to the one around it."""
        if isinstance(node, Function):
            bound.add(node.name)
            self.fixed.add(node.name)
        if isinstance(node, (*Function, ast.Lambda)):
            defaults = [d for d in [*node.args.defaults, *node.args.kw_defaults] if d is not None]
            return [*getattr(node, "decorator_list", []), *defaults]
        return [node.generators[0].iter]  # type: ignore[attr-defined]
