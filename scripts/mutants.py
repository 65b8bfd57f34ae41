# SPDX-License-Identifier: AGPL-3.0-only
"""Changes the service's code in many small ways and lists the changes that no test notices (mutation testing).

mutmut does it, in a copy of the project below build/mutants. A change that mypy refuses counts as noticed, since
`make lint` would. What is listed is to be caught by a test, or explained in docs/mutants.md; ends with 1 where some
change is neither.
"""

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from .upstream import ROOT

_COPY = ROOT / "build" / "mutants"
_EXPLAINED = ROOT / "docs" / "mutants.md"

_TESTS = {
    "api/access_log": ["access_log", "errors"],
    "api/auth": ["auth"],
    "api/bodies": ["bodies", "upload"],
    "api/console": ["console"],
    "api/docs": ["docs"],
    "api/errors": ["errors"],
    "api/limits": ["limits"],
    "api/metrics": ["metrics"],
    "api/record": ["record", "access_log"],
    "api/replies": ["replies", "errors"],
    "api/routes": ["routes"],
    "api/status": ["status"],
    "api/upload": ["upload"],
    "decoders": ["photo"],
    "lifecycle": ["lifecycle"],
    "models/checksums": ["hub", "transfer"],
    "models/hub": ["hub", "transfer"],
    "models/loader": ["loader", "store"],
    "models/progress": ["progress"],
    "models/prune": ["prune"],
    "models/sources": ["hub", "transfer"],
    "models/store": ["store"],
    "models/transfer": ["transfer", "hub"],
    "photo": ["photo"],
    "runtime/fingerprint": ["prepared"],
    "runtime/layout": ["prepared"],
    "runtime/prepare": ["prepared"],
    "runtime/prepared": ["prepared"],
}
"""The modules, and the files below tests/unit that run them in the process of the tests: what runs in another, such as
a service that tests speak to over a socket, is not seen."""

_LOG_CALLS = r"\blog\.(debug|info|warning|error)\("  # what the log says is not for tests
_HEADER = re.compile(r'headers\.get\("[^"]*"')  # of HTTP: capitals make no difference in its name
_MYPY = "mypy src --output=json --no-warn-unused-ignores --disable-error-code=no-redef"  # both of mutmut's own making
_SECONDS = 60  # that a test may take before a change counts as noticed: it hangs
_STATES = {0: "survived", 1: "caught", 3: "caught", 33: "survived", 36: "caught", 37: "by types", -24: "caught"}

_CONFTEST = f"""
import os, signal, pytest

@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    signal.signal(signal.SIGALRM, lambda *_: os._exit(36))
    signal.alarm({_SECONDS})
    try:
        return (yield)
    finally:
        signal.alarm(0)
"""


@dataclass(frozen=True)
class Survivor:
    """A change that nothing noticed: where, and the line before and after."""

    module: str
    line: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.module}.py:{self.line}\n    - {self.before}\n    + {self.after}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.mutants", description=__doc__)
    parser.add_argument(
        "modules", metavar="MODULE", nargs="*", help="such as api/bodies (default: all that are listed)"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    modules = options.modules or sorted(_TESTS)
    if unknown := set(modules) - set(_TESTS):
        parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(sorted(_TESTS))}")
    _lay_out(modules)
    (source := _COPY / "mutants" / "src").mkdir(parents=True)  # at once, since Python remembers that a folder lacks
    environment = {**os.environ, "PYTHONPATH": str(source)}  # for processes that tests start, too
    command = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", str(options.processes)]
    if status := subprocess.run(command, cwd=_COPY, env=environment, check=False).returncode:
        return status
    return _report(modules)


def _lay_out(modules: Sequence[str]) -> None:
    """mutmut finds a package in a folder of the name src, and nothing in one of the name overlay."""
    shutil.rmtree(_COPY, ignore_errors=True)
    package = _COPY / "src" / "mt_photos_ml"
    shutil.copytree(ROOT / "overlay" / "mt_photos_ml", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "VERSION", package)
    for folder in ("demo", "tests"):
        shutil.copytree(ROOT / folder, _COPY / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (_COPY / "conftest.py").write_text(_CONFTEST)
    for module in modules:
        path = package / f"{module}.py"
        path.write_text(plainly_decorated(path.read_text()))
    tests = sorted({f"tests/unit/test_{name}.py" for module in modules for name in _TESTS[module]})
    settings = {
        "source_paths": ["src"],
        "only_mutate": [f"src/mt_photos_ml/{module}.py" for module in modules],
        "do_not_mutate_patterns": [_LOG_CALLS],
        "also_copy": ["demo", "conftest.py"],
        "pytest_add_cli_args_test_selection": [test for test in tests if (_COPY / test).is_file()],
        "type_check_command": [sys.executable, "-m", *_MYPY.split()],
        "process_isolation": "forkserver",  # onnxruntime's threads do not survive a fork
        "timeout_multiplier": 3.0,
        "timeout_constant": 10.0,
        "use_git_change_detection": False,
    }
    project = (ROOT / "pyproject.toml").read_text().replace('"overlay"', '"src"')
    words = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    (_COPY / "pyproject.toml").write_text(f"{project}\n[tool.mutmut]\n{words}")


def plainly_decorated(source: str) -> str:
    """`@decorator` above a function written as `name = decorator(name)` below it, on the same lines otherwise: mutmut
    leaves functions alone that have a decorator."""
    lines = source.split("\n")
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not node.decorator_list:
            continue
        (decorator,) = node.decorator_list
        name, words = node.name, ast.unparse(decorator)
        if words in ("classmethod", "property") or node.end_lineno is None:
            continue
        lines[decorator.lineno - 1] = ""
        lines[node.lineno - 1] = lines[node.lineno - 1].replace(f"def {name}(", f"def {name}_plain(", 1)
        assert lines[node.end_lineno] == "", f"no empty line below {name}"
        lines[node.end_lineno] = f"{' ' * node.col_offset}{name} = {words}({name}_plain)"
    return "\n".join(lines)


def _report(modules: Sequence[str]) -> int:
    explained = _EXPLAINED.read_text() if _EXPLAINED.is_file() else ""
    open_questions = 0
    table = [f"{'module':24}{'mutants':>8}{'caught':>8}{'by types':>9}{'survived':>9}{'explained':>10}"]
    for module in modules:
        survivors = list(_survivors(module))
        unexplained = [survivor for survivor in survivors if not is_explained(survivor, explained)]
        counts = Counter(_STATES.get(code, "caught") for code in _codes(module).values())
        numbers = sum(counts.values()), counts["caught"], counts["by types"], counts["survived"]
        table.append("{:24}{:8}{:8}{:9}{:9}{:10}".format(module, *numbers, len(survivors) - len(unexplained)))
        open_questions += len(unexplained)
        for survivor in unexplained:
            print(survivor)
    print("\n".join(table))
    print(f"{open_questions} changes are neither caught nor explained in {_EXPLAINED.relative_to(ROOT)}")
    return 1 if open_questions else 0


def is_explained(survivor: Survivor, table: str) -> bool:
    """Whether a row of the table names the module and, between backticks, the line as it was changed to; or whether the
    lines differ only in the capitals of a header's name."""
    plain = (_HEADER.sub(lambda name: name[0].lower(), line) for line in (survivor.before, survivor.after))
    return len({*plain}) == 1 or any(
        f"`{survivor.module}`" in row and f"`{survivor.after}`" in row.replace("\\|", "|") for row in table.splitlines()
    )


def _codes(module: str) -> dict[str, int]:
    codes: dict[str, int] = json.loads((_mutated(module).with_suffix(".py.meta")).read_text())["exit_code_by_key"]
    return codes


def _mutated(module: str) -> Path:
    return _COPY / "mutants" / "src" / "mt_photos_ml" / f"{module}.py"


def _survivors(module: str) -> Iterator[Survivor]:
    mutated, original = (_functions(path) for path in (_mutated(module), _COPY / "src/mt_photos_ml" / f"{module}.py"))
    for key, code in _codes(module).items():
        if _STATES.get(code) != "survived":
            continue
        mutant = key.rpartition(".")[2]
        name = mutant.rpartition("__mutmut_")[0]
        first, _ = original[".".join(name.split("ǁ")[1:]) or name.removeprefix("x_")]
        yield _difference(module, first, mutated[f"{name}__mutmut_orig"][1], mutated[mutant][1])


def _difference(module: str, first: int, before: list[str], after: list[str]) -> Survivor:
    """The first line that differs."""
    at, was, is_now = next(
        (at, *pair) for at, pair in enumerate(zip_longest(before, after, fillvalue="")) if len({*pair}) > 1
    )
    return Survivor(module, first + at, was.strip(), is_now.strip())


def _functions(path: Path) -> dict[str, tuple[int, list[str]]]:
    """Where each begins, and its lines. By name, with the class's in front where it is not mutmut's own."""
    source = path.read_text()
    lines, found = source.split("\n"), {}
    for node in ast.walk(ast.parse(source)):
        for inner in getattr(node, "body", ()) if isinstance(node, ast.Module | ast.ClassDef) else ():
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                own = isinstance(node, ast.Module) or "__mutmut_" in inner.name
                name = inner.name if own else f"{node.name}.{inner.name}"  # type: ignore[attr-defined]
                plain = inner.name.partition("__mutmut_")[0].rpartition("ǁ")[2].removeprefix("x_")
                body = lines[inner.lineno - 1 : inner.end_lineno]
                found[name] = inner.lineno, [body[0].replace(inner.name, plain, 1), *body[1:]]
    return found


if __name__ == "__main__":
    sys.exit(main())
