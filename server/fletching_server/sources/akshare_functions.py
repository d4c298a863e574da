"""Which functions AKShare has and what their parameters are called, from the files of the package: nothing of it is run."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
from pathlib import Path
from typing import Any, Final

from fletching_schemas.errors import SourceUnavailable

_REGISTRY: Final = "data/interfaces.json"


@functools.cache
def registry() -> dict[str, dict[str, Any]]:
    """Return what the package tells about each public function, by the function's name."""
    document = json.loads((_folder() / _REGISTRY).read_text(encoding="utf-8"))
    return {each["name"]: each for each in document["interfaces"]}


def modules() -> dict[str, str]:
    """Return the module that defines each public function, by the function's name."""
    return {name: each["module"] for name, each in registry().items()}


def functions() -> list[str]:
    """Return the names of all public functions, sorted."""
    return sorted(modules())


@functools.cache
def parameters(function: str) -> tuple[str, ...] | None:
    """Return the names of the parameters of *function* in order; None where its definition is not found.

    The registry has the parameters too, but not of every function; the definition is always right.
    """
    if (module := modules().get(function)) is None:
        return None
    path = _folder().joinpath(*module.split(".")[1:]).with_suffix(".py")
    if not path.is_file():
        return None
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            told = node.args
            return tuple(each.arg for each in (*told.posonlyargs, *told.args, *told.kwonlyargs))
    return None


def _folder() -> Path:
    spec = importlib.util.find_spec("akshare")
    if spec is None or spec.origin is None:
        raise SourceUnavailable("akshare is not installed; pip install 'fletching[akshare]'")
    return Path(spec.origin).parent
