# SPDX-License-Identifier: AGPL-3.0-only
"""Compares the names that we use of upstream's package between two of its versions, from the sources alone."""

import ast
import difflib
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

Names = Mapping[str, Sequence[str]]
Files = Mapping[str, bytes]
"""Sources by their path below the folder of the package's folder: immich_ml/config.py."""

_OURS = {"immich_ml.upstream_main": "immich_ml.main"}
"""Upstream's main.py under the name that it has in our image."""
_ALIKE = 0.75
"""From which on a new name counts as the old one, renamed: the share of its declaration that is the same."""


@dataclass(frozen=True)
class Change:
    """gone: whether upstream lacks the name now; else it is still there and declared otherwise."""

    gone: bool
    text: str


def names_used(source: str) -> Names:
    """NAMES of runtime/immich.py: what we use of upstream, by module."""
    for statement in ast.parse(source).body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id="NAMES"), value=ast.expr() as value):
                named: Names = ast.literal_eval(value)
                return {_OURS.get(module, module): names for module, names in named.items()}
    raise ValueError("runtime/immich.py has no NAMES")


def has_modules(files: Files, names: Names) -> bool:
    """Whether there is a source for every module."""
    return all(_path(module, files) for module in names)


def compare(old: Files, new: Files, names: Names) -> list[Change]:
    """What has become of the names."""
    changes = []
    for module, wanted in names.items():
        for name in wanted:
            before, after = _declared(module, name, old), _declared(module, name, new)
            if after is None:
                renamed = _renamed(module, name, old, new)
                changes.append(Change(True, f"{module}.{name} is gone{renamed}"))
            elif before is not None and before != after:
                changes.append(Change(False, f"{module}.{name} is declared otherwise:\n{_difference(before, after)}"))
    return changes


def _path(module: str, files: Files) -> str | None:
    path = module.replace(".", "/")
    return next((found for found in (f"{path}/__init__.py", f"{path}.py") if found in files), None)


def _declarations(module: str, files: Files) -> dict[str, ast.stmt]:
    """The statements that give the module's names."""
    if (path := _path(module, files)) is None:
        return {}
    found: dict[str, ast.stmt] = {}
    for statement in _statements(ast.parse(files[path]).body):
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found[statement.name] = statement
            case ast.Assign(targets=targets):
                names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
                found |= dict.fromkeys(names, statement)
            case ast.AnnAssign(target=ast.Name(id=name)):
                found[name] = statement
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                found |= dict.fromkeys((alias.asname or alias.name for alias in aliases), statement)
    return found


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of a module, also within if, try and with."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With):
            for part in ("body", "handlers", "orelse", "finalbody"):
                for inner in getattr(statement, part, []):
                    yield from _statements(inner.body if isinstance(inner, ast.ExceptHandler) else [inner])


def _declared(module: str, name: str, files: Files, depth: int = 0) -> str | None:
    """How the name is declared, without what a function does inside; None where it is not."""
    declarations = _declarations(module, files)
    statement = declarations.get(name)
    match statement:
        case None:
            return None
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return _function(statement)
        case ast.ClassDef():
            return _class(statement)
        case ast.ImportFrom() if depth < 5 and (origin := _origin(statement, name, module, files)):
            return _declared(*origin, files, depth + 1) or ast.unparse(statement)
        case ast.Assign(value=ast.Call(func=ast.Name(id=made))) if isinstance(declarations.get(made), ast.ClassDef):
            return f"{ast.unparse(statement)}\n{_declared(module, made, files, depth + 1)}"
    return ast.unparse(statement)


def _origin(statement: ast.ImportFrom, name: str, module: str, files: Files) -> tuple[str, str] | None:
    """The module of upstream's that the name is imported from, and its name there."""
    source = statement.module or ""
    if statement.level:
        package = module if (_path(module, files) or "").endswith("/__init__.py") else module.rpartition(".")[0]
        parents = package.split(".")[: len(package.split(".")) - statement.level + 1]
        source = ".".join([*parents, *([source] if source else [])])
    named = next(alias.name for alias in statement.names if (alias.asname or alias.name) == name)
    return (source, named) if _path(source, files) else None


def _function(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    decorators = "".join(f"@{ast.unparse(decorator)}\n" for decorator in function.decorator_list)
    start = "async def" if isinstance(function, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"{decorators}{start} {function.name}({ast.unparse(function.args)}){returns}"


def _class(declared: ast.ClassDef) -> str:
    """Its bases and its members that are for others, in any order."""
    members = []
    for member in declared.body:
        if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
            if not member.name.startswith("_") or member.name in ("__init__", "__call__"):
                members.append(_function(member))
        elif isinstance(member, ast.Assign | ast.AnnAssign):
            members.append(ast.unparse(member))
    bases = ", ".join(ast.unparse(base) for base in declared.bases)
    return "\n".join([f"class {declared.name}({bases})", *sorted(members)])


def _renamed(module: str, name: str, old: Files, new: Files) -> str:
    """Which new name of the module looks like the one that is gone, in words; or that the module is gone."""
    if _path(module, new) is None:
        return f": {posixpath.join(*module.split('.'))}.py is no longer there"
    before, after = _declarations(module, old), _declarations(module, new)
    if name not in before:
        return ""
    text = _anonymous(before[name], name)
    alike = {
        other: difflib.SequenceMatcher(None, text, _anonymous(statement, other)).ratio()
        for other, statement in after.items()
        if other not in before and type(statement) is type(before[name])
    }
    best = max(alike, key=alike.__getitem__, default="")
    return f"; {best}, which is new there, looks like it" if best and alike[best] > _ALIKE else ""


def _anonymous(statement: ast.stmt, name: str) -> str:
    return ast.unparse(statement).replace(name, "")


def _difference(before: str, after: str) -> str:
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return "\n".join(f"  {line}" for line in lines if line[0] in "+-")
