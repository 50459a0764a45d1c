"""Stripped source does what the source does, and is the same text on every version of Python."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
import subprocess
import symtable
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from vqcomp.archive.packing import strip_program
from vqcomp.archive.renaming import fstring_names, rename
from vqcomp.archive.stripping import Text, remove_ballast, strip

RUNTIME = sorted((REPOSITORY / "vqcomp/runtime").glob("*.py"))
STANDARD = (
    "argparse", "ast", "asyncio.base_events", "bdb", "calendar", "configparser", "contextlib", "copy", "csv",
    "dataclasses", "datetime", "decimal", "difflib", "dis", "doctest", "email.message", "enum", "fractions", "ftplib",
    "functools", "heapq", "html.parser", "http.client", "importlib._bootstrap", "inspect", "json.decoder",
    "json.encoder", "locale", "logging", "mailbox", "multiprocessing.pool", "optparse", "pathlib", "pdb", "pickle",
    "platform", "pprint", "queue", "random", "shutil", "socketserver", "statistics", "string", "subprocess",
    "tarfile", "tempfile", "textwrap", "threading", "tokenize", "traceback", "types", "typing", "unittest.mock",
    "urllib.parse", "uuid", "warnings", "weakref", "zipfile",
)  # fmt: skip
MODULES = {path.name: path for path in RUNTIME}
for _name in STANDARD:
    _spec = importlib.util.find_spec(_name)
    if _spec and _spec.origin and _spec.origin.endswith(".py"):
        MODULES[_name] = Path(_spec.origin)


# ---- without renaming


class Reference(ast.NodeTransformer):
    """What stripping is to do to a tree, said once more."""

    def __init__(self, tree):
        self.keeps_docstrings = re.search("(id|attr)='__doc__'", ast.dump(tree))
        self.kept_annotation = False
        self.owners = {s: c for c in ast.walk(tree) if isinstance(c, ast.ClassDef) for s in c.body}

    def visit(self, node):
        names = [name for name in ("body", "orelse", "finalbody") if isinstance(getattr(node, name, None), list)]
        full = [name for name in names if getattr(node, name)]
        node = super().visit(node)
        for name in full:
            if node and not getattr(node, name, True) and not isinstance(node, ast.Module):
                setattr(node, name, [ast.Pass()])
        return node

    def visit_Pass(self, node):
        return None

    def visit_Expr(self, node):
        if isinstance(node.value, ast.Constant):
            return node if self.keeps_docstrings and isinstance(node.value.value, str) else None
        return self.generic_visit(node)

    def visit_If(self, node):
        if "TYPE_CHECKING" in ast.dump(node.test) and not node.orelse and not isinstance(node.test, ast.BoolOp):
            return None
        return self.generic_visit(node)

    def visit_arg(self, node):
        node.annotation = None
        return node

    def visit_FunctionDef(self, node):
        node.returns = None
        return self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_AnnAssign(self, node):
        owner = self.owners.get(node)
        bases = {ast.unparse(base).split("[")[0] for base in owner.bases} if owner else set()
        if owner and (owner.decorator_list or owner.keywords or bases - {"Protocol", "Generic", "object"}):
            text = ast.unparse(node.annotation)
            if re.search(r"\b(ClassVar|Final|InitVar|KW_ONLY|ReadOnly|(Not)?Required)\b|^['\"]", text):
                self.kept_annotation = True
            else:
                node.annotation = ast.Name("int", ast.Load())
            return self.generic_visit(node)
        if node.value is None:
            return None
        return self.generic_visit(ast.Assign([node.target], node.value))


def reference(source):
    tree = ast.parse(source)
    transformer = Reference(tree)
    tree = transformer.visit(tree)
    if not transformer.kept_annotation:
        tree.body = [s for s in tree.body if not (isinstance(s, ast.ImportFrom) and s.module == "__future__")] + [
            s for s in tree.body if isinstance(s, ast.ImportFrom) and s.module == "__future__" and len(s.names) > 1
        ]
    return ast.dump(tree)


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES)
def test_stripping_changes_nothing_but_docstrings_annotations_and_passes(path):
    source = path.read_text("utf-8")
    stripped = strip(source)
    assert ast.dump(ast.parse(stripped)) == reference(source)
    assert strip(stripped) == stripped
    assert len(stripped) < len(source)


def test_layout_is_gone():
    source = '''
"""Docstring."""
from __future__ import annotations
from typing import Any  # a comment


class Empty:
    """Nothing."""


def f(a: int, *args: Any, key: "str" = "x  y", **more: Any) -> dict[str, Any]:
    """Docstring."""
    total: int
    value: list[int] = [
        1, 2,  # two
        -3 ** 2,
    ]
    if (not a) or "x" in ("y",): return (a,)
    else:
        pass
    return {"a": value[a, ], "b": 1 .real, "c": "" "d", "e": f(
        a, )}
'''
    assert strip(source) == (
        "from typing import Any\nclass Empty:\n\tpass\n"
        'def f(a,*args,key="x  y",**more):\n\tvalue=[1,2,-3**2]\n'
        '\tif(not a)or"x"in("y",):return(a,)\n\telse:\n\t\tpass\n'
        '\treturn{"a":value[a,],"b":1 .real,"c":"" "d","e":f(a)}\n'
    )


NAMES = st.sampled_from(["a", "b", "if_", "e1", "x0", "é"])
LITERALS = st.one_of(
    st.integers(0, 1 << 40), st.floats(0, 1e30), st.text("ab'\"\\{}\n", max_size=3), st.binary(max_size=2),
    st.sampled_from([True, None, ..., 1j]),
)  # fmt: skip


def _expressions(inner):
    operators = st.sampled_from([ast.Add(), ast.Sub(), ast.Mult(), ast.Div(), ast.Pow(), ast.LShift(), ast.MatMult()])
    arguments = st.lists(NAMES, max_size=2, unique=True).map(
        lambda names: ast.arguments([], [ast.arg(n) for n in names], None, [], [], None, [])
    )
    several, perhaps = st.lists(inner, max_size=3), st.lists(inner, max_size=1)
    comparisons = st.sampled_from([ast.In(), ast.IsNot(), ast.Lt()])
    return st.one_of(
        st.builds(lambda a, o, b: ast.BinOp(a, o, b), inner, operators, inner),
        st.builds(ast.UnaryOp, st.sampled_from([ast.USub(), ast.Not(), ast.Invert(), ast.UAdd()]), inner),
        st.builds(lambda v: ast.BoolOp(ast.Or(), v), st.lists(inner, min_size=2, max_size=3)),
        st.builds(lambda a, o, b: ast.Compare(a, [o], [b]), inner, comparisons, inner),
        st.builds(ast.IfExp, inner, inner, inner),
        st.builds(ast.Lambda, arguments, inner),
        st.builds(lambda v, n: ast.Attribute(v, n, ast.Load()), inner, NAMES),
        st.builds(lambda v, i: ast.Subscript(v, i, ast.Load()), inner, inner),
        st.builds(lambda f, a, k: ast.Call(f, a, [ast.keyword("k", v) for v in k]), inner, several, perhaps),
        st.builds(lambda v: ast.Tuple(v, ast.Load()), several),
        st.builds(lambda v: ast.List(v, ast.Load()), several),
        st.builds(lambda v: ast.Set(v), st.lists(inner, min_size=1, max_size=2)),
        st.builds(lambda v: ast.Dict(list(v), list(v)), several),
        st.builds(
            lambda e, n, i, c: ast.ListComp(e, [ast.comprehension(ast.Name(n, ast.Store()), i, [c], 0)]),
            inner, NAMES, inner, inner,
        ),
    )  # fmt: skip


EXPRESSIONS = st.recursive(
    st.one_of(NAMES.map(lambda n: ast.Name(n, ast.Load())), LITERALS.map(ast.Constant)), _expressions, max_leaves=12
)


@settings(max_examples=300, deadline=None)
@given(EXPRESSIONS, st.randoms())
def test_any_expression_survives_however_it_is_laid_out(expression, random):
    source = "x = (" + ast.unparse(ast.fix_missing_locations(ast.Expression(expression))) + ")"
    wanted = ast.dump(ast.parse(source))
    laid_out = re.sub(r"(?<=[,(])(?![^'\"]*['\"])", lambda _: random.choice(["", "  ", "\n", " # c\n  "]), source)
    for text in (source, laid_out):
        try:
            same = ast.dump(ast.parse(text)) == wanted
        except SyntaxError:
            same = False
        if same:
            assert ast.dump(ast.parse(strip(text + "\n"))) == wanted


# ---- renaming


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NAMES_IN = {(ast.Name, "id"), (ast.arg, "arg"), (ast.ExceptHandler, "name"), (ast.alias, "name")}


def pairs(before, after):
    """(region, old name, new name) of two trees that differ in names alone.

    A region is the line of a function, or of a method, with all that is nested in it; 0 is what is outside. All
    attributes are a region of their own.
    """

    def walk(a, b, region, depth):
        assert type(a) is type(b)
        if isinstance(a, list):
            assert len(a) == len(b)
            for s, t in zip(a, b):
                yield from walk(s, t, region, depth)
        elif isinstance(a, ast.AST):
            own = isinstance(a, FUNCTIONS) and depth == 0
            around = [*a.args.defaults, *a.args.kw_defaults, *a.decorator_list] if own else []
            for field in a._fields:
                x, y = getattr(a, field, None), getattr(b, field, None)
                if (type(a), field) in NAMES_IN and x is not None:
                    yield region, x, y
                elif isinstance(a, ast.Attribute) and field == "attr":
                    yield "attributes", x, y
                elif own and field == "args":
                    for name in ("posonlyargs", "args", "kwonlyargs", "vararg", "kwarg"):
                        yield from walk(getattr(x, name), getattr(y, name), a.lineno, 1)
                    for name in ("defaults", "kw_defaults"):
                        yield from walk(getattr(x, name), getattr(y, name), 0, 0)
                else:
                    inside = own and x not in (around, a.decorator_list)
                    nested = depth + 1 if isinstance(a, FUNCTIONS) else depth
                    yield from walk(x, y, a.lineno if inside else region, nested if inside or depth else 0)
        else:
            assert a == b

    yield from walk(ast.parse(before), ast.parse(after), 0, 0)


def scopes(table, region=0):
    """(region, names of a scope and what each is), as Python's compiler sees them."""
    if not region and table.get_type() == "function" and table.get_name() not in ("lambda", "genexpr", "listcomp"):
        region = table.get_lineno()
    questions = ("is_local", "is_global", "is_free", "is_parameter", "is_assigned", "is_referenced", "is_imported")
    yield region, {s.get_name(): [getattr(s, q)() for q in questions] for s in table.get_symbols()}
    for child in table.get_children():
        yield from scopes(child, region)


def check_renaming(before, after):
    """Names alone differ, and in every scope each means what the old one meant; returns (region, old) -> new."""
    new = {}
    for region, x, y in pairs(before, after):
        assert new.setdefault((region, x), y) == y
    tables = (scopes(symtable.symtable(source, "", "exec")) for source in (before, after))
    for (region, old), (_, found) in zip(*tables, strict=True):
        assert {new.get((region, name), name): kind for name, kind in old.items()} == found
        assert len(found) == len(old)
    attributes = {x: y for (region, x), y in new.items() if region == "attributes"}
    assert all(x == y or (x[0] == "_" and y not in attributes) for x, y in attributes.items())
    return {key: y for key, y in new.items() if key[1] != y}


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES)
def test_renaming_changes_names_alone_and_what_each_means_stays(path):
    before = strip(path.read_text("utf-8"))
    text = Text(before)
    rename({"m": text})
    after = text.render()
    changed = check_renaming(before, after)
    assert changed or len(before) < 2000
    per_region = {}
    for (region, _), new in changed.items():
        assert new not in per_region.setdefault(region, set()), "two old names became one"
        per_region[region].add(new)


def renamed(source):
    text = Text(source)
    remove_ballast(text)
    rename({"m": text})
    return text.render()


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("def f(word):\n return word\nf(word=1)\n", "word"),
        ("def f(word):\n return word\nf(**{'word': 1})\n", "word"),
        ("def f(x):\n global word\n word = x\n", "word"),
        ("def f():\n word = 1\n return locals()\n", "word"),
        ("def f():\n word = 1\n return eval('word')\n", "word"),
        ("def f():\n word = 1\n return f'{word=}'\n", "word"),
        ("def f():\n import word\n return word\n", "word"),
        ("def f():\n def word(): pass\n return word\n", "word"),
        ("def f():\n class word: word = 1\n return word\n", "word"),
        ("def f(x):\n return [word for x in word]\n", "word"),
        ("def f(x):\n return lambda: word\n", "word"),
        ("import other\nclass C(other.D):\n def m(self, word): return word\n", "word"),
        ("class C:\n def __init__(self): self._word = 1\nC()._word\n", "_word"),
        ("class C:\n def __init__(self): self._word = 1\ngetattr(C(), '_word')\n", "_word"),
        ("class C:\n def m(self): return f'{self._word}'\n", "_word"),
        ("class C:\n def _word(self): pass\n def m(self): return self._word\n", "_word"),
        ("import other\nclass C(other.D):\n def m(self): self._word = 1\n", "_word"),
        ("class C:\n def m(self): self.word = 1\n", "word"),
        ("WORD = 1\nprint(m.WORD)\n", "WORD"),
        ("WORD = 1\nprint('WORD')\n", "WORD"),
        ("WORD = 1\ndef f():\n WORD = 2\n", "WORD"),
    ],
)  # fmt: skip
def test_names_that_something_else_may_know_are_kept(source, kept):
    assert re.search(rf"\b{kept}\b", renamed(source))


@pytest.mark.parametrize(
    "source",
    [
        "def f(word):\n return word\nf(1)\n",
        "def f(a):\n word = a\n return f'{word!r:>{word}} {{word2}} {a[0] + word:x} {\"q\"}'\n",
        "def f(a):\n def g(b):\n  nonlocal a\n  return [word + b for word in a]\n return g\n",
        "def f():\n try:\n  pass\n except (A, B) as word:\n  return word\n",
        "def f(self, *word, **words):\n return lambda x, y=word: x, words\n",
        "class C:\n def m(self):\n  self._word, self.b = 1, 2\n  return self._word, a.c\n",
    ],
)  # fmt: skip
def test_names_that_nothing_else_knows_are_short(source):
    assert not re.search(r"(?<!\{)\b_?words?\b", renamed(source))
    check_renaming(strip(source), renamed(source))


def test_constants_keep_one_name_over_all_modules():
    program = strip_program(
        {
            "main": "from .other import LIMIT, f\nA = 1\ndef main(): return f(LIMIT), f'{LIMIT}', A\n",
            "other": "LIMIT = 7\ndef f(limit): return limit + LIMIT\n",
        },
        "main",
    )
    (new,) = re.findall(r"(\w+)=7", program["other"])
    assert new != "LIMIT" and f"import {new},f\n" in program["main"] and f"f({new}),f'{{{new}}}'" in program["main"]


def test_names_in_fstrings_are_found_where_they_are():
    text = "rf'{a}{{b}}{c.d!r:{e}}{f(g=h)[1e5]:>x}{i != j}{\"k\"} l'"
    assert [text[slice(*span)] for span in fstring_names(text)] == ["a", "c", "e", "f", "h", "i", "j"]
    assert fstring_names("f'{a=}'") is None and fstring_names("f'{a = !r}'") is None


# ---- what is not used


def test_what_the_entry_does_not_reach_is_left_out():
    program = strip_program(
        {
            "main": (
                "from typing import Any, Callable\nimport json\nfrom .codec import Codec, Shape, helper\n"
                "Alias = Callable[[], Any]\n"
                "def unused(): return json\n"
                "def main(x: Alias, shape: Shape): return Codec().decode(x).encode(), getattr(x, 'by_name')\n"
            ),
            "codec": (
                "from .spare import spare\nclass Shape: pass\n"
                "def helper(): return spare()\n"
                "def written(): pass\n"
                "class Codec:\n"
                " def __init__(self): self.x = 1\n"
                " def decode(self, x): return x\n"
                " def encode(self, x): return written()\n"
                " def by_name(self): pass\n"
            ),
            "spare": "def spare(): pass\n",
        },
        "main",
    )
    assert program["main"] == (
        "from.codec import Codec\ndef main(a,b):return Codec().decode(a).encode(),getattr(a,'by_name')\n"
    )
    assert "def decode" in program["codec"] and "def by_name" in program["codec"]
    assert "__init__" in program["codec"]
    for gone in ("encode", "written", "helper", "Shape", "spare"):
        assert gone not in program["codec"]


@pytest.mark.parametrize(
    "definition",
    [
        "class C:\n if True:\n  def m(self): return used()\n",
        "class C:\n def m(self): return used()\n",
        "class C:\n x = [used() for _ in 'a']\n def m(self): pass\n",
        "import abc\nclass C(abc.ABC):\n def called_by_others(self): return used()\n def m(self): pass\n",
        "class C:\n def __len__(self): return used()\n def m(self): pass\n",
        "class B:\n def m(self): return used()\nclass C(B): pass\n",
        "class C:\n @property\n def m(self): return used\n",
        "class C:\n m = lambda self: used()\n",
    ],
)
def test_what_a_class_needs_stays(definition):
    program = strip_program({"main": definition + "def used(): pass\ndef main(): return C().m()\n"}, "main")
    assert "def used" in program["main"]


def test_what_runs_when_a_module_is_imported_stays():
    program = strip_program(
        {"main": "import os\ntable = {}\ntable[1] = f = lambda: g\ndef g(): pass\nx = g()\n"}, "main"
    )
    assert "def g" in program["main"] and "table[1]" in program["main"] and "x=g()" in program["main"]
    assert "import os" not in program["main"]


# ---- the same on every Python

PROGRAM = """
import hashlib, json, sys, types
folder = sys.argv[1]
for name in ("vqcomp", "vqcomp.archive"):  # what they import needs NumPy
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [folder + "/" + name.replace(".", "/")]
from vqcomp.archive import packing
texts = dict(packing.stripped_modules())
for need in ("adapt", "gpt", "mixed", "files", "workers"):
    texts[need] = packing.runtime_archive(frozenset({"launch", "main", need})).hex()
texts["external"] = packing.runtime_archive(frozenset({"launch", "main", "token_mixed"})).hex()
texts["bootstrap"] = packing.bootstrap(b"").decode()
print(json.dumps({k: hashlib.sha256(v.encode()).hexdigest() for k, v in texts.items()}, sort_keys=True))
"""


def interpreter(version):
    """A Python of this version on PATH, or of pyenv's; None where there is none."""
    candidates = [sys.executable, shutil.which(f"python{version}")]
    candidates += sorted(str(p) for p in (Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python"))
    for path in filter(None, candidates):
        command = [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() == version:
            return path
    return None


def hashes(python):
    done = subprocess.run([python, "-c", PROGRAM, str(REPOSITORY)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13", "3.14"])
def test_every_version_of_python_strips_to_the_same_bytes(version):
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    assert hashes(python) == hashes(sys.executable)
