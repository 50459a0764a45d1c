"""The shortest text of a Python module that does the same: what a zip carries in place of the source.

The text is edited token by token and never made anew from the tree, since `ast.unparse` differs between versions of
Python. So the same source gives the same bytes on all of them. What goes: comments, docstrings, annotations, blank
lines, all white space that Python can do without, commas before a closing bracket. What stays: every name, every
literal as it is written, and a line for each statement, so that a traceback still shows where it was.
"""

from __future__ import annotations

import ast
import io
import keyword
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

Statement = ast.stmt
_KINDS = (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING)
_LAYOUT = (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
_OPEN, _CLOSE = "([{", ")]}"
_SOFT_KEYWORDS = ("match", "case")
PLAIN_BASES = {"Generic", "Protocol", "object"}
"""Classes with no other bases do nothing with the annotations in their bodies."""
_SPECIAL = {"ClassVar", "Final", "InitVar", "KW_ONLY", "NotRequired", "ReadOnly", "Required"}
"""Annotations that a class decorator reads."""


class Token(NamedTuple):
    """A token that counts; positions are (line from 1, column in bytes of UTF-8), as in a tree."""

    kind: int
    text: str
    start: tuple[int, int]
    end: tuple[int, int]


def read_tokens(source: str) -> list[Token]:
    """All tokens but comments and line breaks within a statement. An f-string is one token, as before Python 3.12."""
    lines = source.split("\n")

    def position(line: int, column: int) -> tuple[int, int]:
        text = lines[line - 1] if line <= len(lines) else ""
        return line, column if text.isascii() else len(text[:column].encode())

    def text_between(start: tuple[int, int], end: tuple[int, int]) -> str:
        part = [*lines[start[0] - 1 : end[0] - 1], lines[end[0] - 1][: end[1]]]
        return "\n".join([part[0][start[1] :], *part[1:]])

    fstring_start, fstring_end = getattr(tokenize, "FSTRING_START", None), getattr(tokenize, "FSTRING_END", None)
    tokens: list[Token] = []
    depth, start = 0, (0, 0)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == fstring_start:
            start = start if depth else token.start
            depth += 1
        elif token.type == fstring_end:
            depth -= 1
            if not depth:
                text = text_between(start, token.end)
                tokens.append(Token(tokenize.STRING, text, position(*start), position(*token.end)))
        elif not depth and (token.type in _KINDS or token.type in _LAYOUT):
            tokens.append(Token(token.type, token.string, position(*token.start), position(*token.end)))
    return tokens


class Text:
    """A module under edit: its tree, which stays as it was parsed, its tokens, and what is to become of them."""

    def __init__(self, source: str) -> None:
        """Raises SyntaxError where it is not Python."""
        self.tree = ast.parse(source)
        self.nodes = list(ast.walk(self.tree))
        self.tokens = read_tokens(source)
        solid = [i for i, token in enumerate(self.tokens) if token.kind not in _LAYOUT]
        self._starts = {self.tokens[i].start: i for i in solid}
        self._ends = {self.tokens[i].end: i for i in solid}
        self._removed: set[Statement] = set()
        self._edits: dict[int, str] = {}
        """Tokens' new texts; an empty one drops the token."""

    def first(self, node: ast.AST) -> int:
        """Index of the first token of a node."""
        return self._starts[node.lineno, node.col_offset]  # type: ignore[attr-defined]

    def last(self, node: ast.AST) -> int:
        """Index of the last token of a node."""
        return self._ends[node.end_lineno, node.end_col_offset]  # type: ignore[attr-defined]

    def edit(self, token: int, text: str) -> None:
        """Put other text in place of a token."""
        self._edits[token] = text

    def current(self, token: int) -> str:
        """A token's text after the edits so far."""
        return self._edits.get(token, self.tokens[token].text)

    def drop(self, start: int, stop: int) -> None:
        """Leave out tokens start..stop-1."""
        self._edits.update(dict.fromkeys(range(start, stop), ""))

    def remove(self, statement: Statement) -> None:
        """Leave out a statement; a block that is left without any gets a `pass`."""
        self._removed.add(statement)

    def removed(self, statement: Statement) -> bool:
        return statement in self._removed

    def holds(self, node: ast.AST) -> bool:
        """Whether the first token of a node is still as it was."""
        return self.current(self.first(node)) == self.tokens[self.first(node)].text

    def find(self, start: int, texts: tuple[str, ...]) -> int:
        """Index of the first token from `start` on, outside brackets, that is one of `texts` or ends the line."""
        depth = 0
        for i in range(start, len(self.tokens)):
            kind, text = self.tokens[i][:2]
            if depth == 0 and (kind == tokenize.NEWLINE or (kind != tokenize.STRING and text in texts)):
                return i
            depth += (kind == tokenize.OP) * ((text in _OPEN) - (text in _CLOSE))
        return len(self.tokens)

    def render(self) -> str:
        """The text after all edits; ends with a newline unless it is empty."""
        edits = dict(self._edits)
        for block in self._blocks(self.tree):
            gone = [statement for statement in block if statement in self._removed]
            empty = len(gone) == len(block) and block is not self.tree.body
            for statement in gone:
                self._cut(statement, empty and statement is block[0], edits)
        tokens = [
            (token.kind, edits.get(i, token.text))
            for i, token in enumerate(self.tokens)
            # Layout has tokens without text.
            if edits.get(i, token.text) or (token.kind in _LAYOUT and i not in edits)
        ]
        return _join(_without_last_commas(tokens))

    def _blocks(self, node: ast.AST) -> Iterator[list[Statement]]:
        """All blocks but those of statements that are removed."""
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list) and block:
                yield block
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.expr, ast.expr_context)) and child not in self._removed:
                yield from self._blocks(child)

    def _cut(self, statement: Statement, keep_place: bool, edits: dict[int, str]) -> None:
        decorators = getattr(statement, "decorator_list", [])
        start = self.first(decorators[0] if decorators else statement)
        while decorators and self.tokens[start].text != "@":
            start -= 1
        stop = self.stop(statement)
        alone = start == 0 or self.tokens[start - 1].kind in _LAYOUT
        alone = alone and self.tokens[stop - 1].kind in _LAYOUT
        edits.update(dict.fromkeys(range(start, stop), ""))
        if keep_place or not alone:
            edits[start] = "pass"
            newlines = [i for i in range(start, stop) if self.tokens[i].kind == tokenize.NEWLINE]
            if newlines:
                del edits[newlines[-1]]

    def stop(self, statement: Statement) -> int:
        """The index after the last token of a statement; its line's end is part of it unless a `;` comes first."""
        end = statement.end_lineno or 0, statement.end_col_offset or 0
        depth = indent = 0
        for i in range(self.first(statement), len(self.tokens)):
            kind, text, _, _ = self.tokens[i]
            indent += (kind == tokenize.INDENT) - (kind == tokenize.DEDENT)
            depth += (kind == tokenize.OP) * ((text in _OPEN) - (text in _CLOSE))
            if text == ";" and depth == 0 and self.tokens[i].start >= end:
                return i
            if kind in (tokenize.NEWLINE, tokenize.DEDENT) and indent == 0:
                following = self.tokens[i + 1] if i + 1 < len(self.tokens) else None
                if following is None or (following.kind != tokenize.INDENT and following.start >= end):
                    return i + 1
        return len(self.tokens)


def _without_last_commas(tokens: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Drop the comma before a closing bracket, but for `(a,)` and `x[a,]`, where it makes a tuple."""
    kept: list[tuple[int, str]] = []
    brackets: list[_Bracket] = []
    for kind, text in tokens:
        if kind == tokenize.OP and text in _OPEN:
            before = kept[-1] if kept else (tokenize.OP, "=")
            after_value = (
                before[1] in (")", "]", "}")
                or before[0] == tokenize.STRING
                or (before[0] == tokenize.NAME and not keyword.iskeyword(before[1]) and before[1] not in _SOFT_KEYWORDS)
            )
            brackets.append(_Bracket(text == "{" or (text == "(") == after_value))
        elif kind == tokenize.OP and text in _CLOSE:
            bracket = brackets.pop()
            may_go = not bracket.has_lambda and (bracket.commas > 1 or bracket.one_may_go)
            if may_go and kept[-1] == (tokenize.OP, ","):
                kept.pop()
        elif brackets:
            brackets[-1].commas += kind == tokenize.OP and text == ","
            brackets[-1].has_lambda |= text == "lambda"
        kept.append((kind, text))
    return kept


@dataclass
class _Bracket:
    """One that is open. `one_may_go`: a call, a list, a set; its only comma makes no tuple."""

    one_may_go: bool
    commas: int = 0
    has_lambda: bool = False


def _join(tokens: list[tuple[int, str]]) -> str:
    pieces: list[str] = []
    indent, before, start = 0, (tokenize.NEWLINE, "\n"), True
    for kind, text in tokens:
        if kind == tokenize.INDENT:
            indent += 1
        elif kind == tokenize.DEDENT:
            indent -= 1
        elif kind == tokenize.NEWLINE:
            pieces.append("\n")
            start = True
        else:
            if start:
                pieces.append("\t" * indent)  # one byte a level, and found nowhere else: bzip2 likes that
            elif _apart(before, (kind, text)):
                pieces.append(" ")
            pieces.append(text)
            before, start = (kind, text), False
    return "".join(pieces)


def _apart(left: tuple[int, str], right: tuple[int, str]) -> bool:
    """Whether two tokens side by side would be read as something else."""
    a, b = left[1][-1], right[1][0]
    if _in_name(a) and _in_name(b):
        # A quote ends a string: what follows is no part of it.
        return left[0] != tokenize.STRING
    if left[0] == tokenize.NUMBER:
        return b == "." or _in_name(b)
    # An empty string and one more: three quotes.
    return left[0] == right[0] == tokenize.STRING and len(left[1]) >= 2 and left[1][-2:] in ('""', "''") and b == a


def _in_name(character: str) -> bool:
    return character == "_" or character.isalnum() or not character.isascii()


def remove_ballast(text: Text) -> None:
    """Docstrings, annotations, and imports for them that are under `if TYPE_CHECKING:`."""
    uses_docstrings = any("__doc__" in (getattr(n, "id", ""), getattr(n, "attr", "")) for n in text.nodes)
    kept = False
    in_classes = {s: c for c in text.nodes if isinstance(c, ast.ClassDef) for s in c.body}
    for node in text.nodes:
        if isinstance(node, ast.Pass):
            text.remove(node)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if not (uses_docstrings and isinstance(node.value.value, str)):
                text.remove(node)
        elif isinstance(node, ast.If) and is_type_checking(node):
            text.remove(node)
        elif isinstance(node, ast.arg) and node.annotation:
            colon = text.first(node) + 1
            text.drop(colon, text.find(colon, (",", ")", "=")))
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.returns:
            arrow = text.first(node.returns)
            while text.tokens[arrow].text != "->":
                arrow -= 1
            text.drop(arrow, text.find(arrow, (":",)))
        elif isinstance(node, ast.AnnAssign):
            kept |= not _remove_annotation(text, node, in_classes.get(node))
    for statement in text.tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__" and not kept:
            keep_names(text, statement, [alias for alias in statement.names if alias.name != "annotations"])


def keep_names(text: Text, node: ast.Import | ast.ImportFrom, wanted: list[ast.alias]) -> None:
    """Of the names that a statement imports, leave those alone that are wanted, and brackets around them."""
    if not wanted:
        text.remove(node)
        return
    for alias in node.names:
        if alias not in wanted:
            text.drop(text.first(alias), text.last(alias) + 1)
    for i in range(text.first(node), text.stop(node)):
        if text.tokens[i].text in ("(", ")"):
            text.drop(i, i + 1)
    # What lies between two names is a comma.
    for alias in node.names:
        comma = text.last(alias) + 1
        if text.tokens[comma].text == "," and (alias not in wanted or alias is wanted[-1]):
            text.drop(comma, comma + 1)


def is_type_checking(node: ast.If) -> bool:
    return not node.orelse and ast.dump(node.test) in (
        ast.dump(ast.parse(name, mode="eval").body) for name in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    )


def keeps_fields(node: ast.ClassDef) -> bool:
    """Whether a decorator or a base may make something of the annotations in a class."""
    bases = {getattr(base.value if isinstance(base, ast.Subscript) else base, "id", "") for base in node.bases}
    return bool(node.decorator_list or node.keywords or not bases <= PLAIN_BASES)


def _remove_annotation(text: Text, node: ast.AnnAssign, where: ast.ClassDef | None) -> bool:
    """Shorten one; False if it has to stay as it is."""
    colon = text.last(node.target) + 1
    if text.tokens[colon].text != ":":  # a target in brackets
        return False
    stop = text.find(colon, ("=", ";"))
    if where is not None and keeps_fields(where):
        names = {n.id for n in ast.walk(node.annotation) if isinstance(n, ast.Name)}
        names |= {n.attr for n in ast.walk(node.annotation) if isinstance(n, ast.Attribute)}
        if names & _SPECIAL or isinstance(node.annotation, ast.Constant):
            return False
        # A field all the same; its type is for readers.
        text.drop(colon + 2, stop)
        text.edit(colon + 1, "int")
    elif node.value is not None:
        text.drop(colon, stop)
    elif isinstance(node.target, ast.Name) or isinstance(getattr(node.target, "value", None), ast.Name):
        text.remove(node)
    else:
        return False
    return True


def strip(source: str) -> str:
    """A module's source without what only readers need."""
    text = Text(source)
    remove_ballast(text)
    return text.render()
