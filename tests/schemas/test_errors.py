"""The tree of errors: complete, drawn, and rebuilt from what travels."""

from __future__ import annotations

import pickle
import re

import pytest

from fletching_schemas import errors
from fletching_schemas.errors import Error, error_from_code


def _below(root: type[Error]) -> list[type[Error]]:
    return [root] + [leaf for child in root.__subclasses__() for leaf in _below(child)]


# Other modules of a test run may add errors of their own below this tree.
TREE = [kind for kind in dict.fromkeys(_below(Error)) if kind.__module__ == errors.__name__]
DRAWN = re.findall(r"^( {4,})(\w+)(?: +\((\w+)\))?(?: {2,}|$)", errors.__doc__ or "", re.MULTILINE)
BUILTINS = {name: builtin for _, name, builtin in DRAWN if builtin}


def test_every_class_has_a_code_of_its_own() -> None:
    codes = [kind.__dict__["code"] for kind in TREE]
    assert len(set(codes)) == len(TREE)
    assert [code for code in codes if not re.fullmatch(r"[a-z]+(_[a-z]+)*", code)] == []


def test_a_code_is_the_class_name_in_snake_case() -> None:
    assert {kind.code: re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower() for kind in TREE} == {
        kind.code: kind.code for kind in TREE
    }


def test_every_class_is_public_and_described() -> None:
    assert {kind.__name__ for kind in TREE} | {"copy_of", "error_from_code"} == set(errors.__all__)
    assert sorted(errors.__all__) == sorted(set(errors.__all__))
    assert [kind.__name__ for kind in TREE if not kind.__dict__.get("__doc__")] == []


def test_the_drawn_tree_is_the_tree() -> None:
    parents: list[str] = []
    drawn = {}
    for indent, name, _ in DRAWN:
        depth = len(indent) // 2 - 2
        del parents[depth:]
        drawn[name] = parents[-1] if parents else "Exception"
        parents.append(name)
    assert drawn == {kind.__name__: kind.__bases__[0].__name__ for kind in TREE}


def test_the_drawn_builtins_are_the_inherited_ones() -> None:
    inherited = {kind.__name__: base.__name__ for kind in TREE for base in kind.__bases__[1:] if base.__module__ == "builtins"}
    assert inherited == BUILTINS


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.InvalidRequest, ValueError),
        (errors.OutOfCalendar, ValueError),
        (errors.NotBuilt, NotImplementedError),
        (errors.UnknownDataset, KeyError),
        (errors.UnknownColumn, KeyError),
        (errors.UnknownSymbol, KeyError),
        (errors.NotCached, LookupError),
        (errors.SourceTimeout, TimeoutError),
        (errors.BadSourceData, ValueError),
        (errors.StoreUnwritable, OSError),
        (errors.ServerUnreachable, ConnectionError),
    ],
)
def test_an_error_is_caught_as_the_builtin_that_people_know(kind: type[Error], builtin: type[Exception]) -> None:
    with pytest.raises(builtin):
        raise kind("no such thing")
    assert issubclass(kind, Error)


@pytest.mark.parametrize("kind", TREE)
def test_the_text_of_an_error_is_the_message_without_quotes(kind: type[Error]) -> None:
    message = "there is no column 'volum'; there is\nvolume"
    assert str(kind(message)) == message
    assert kind(message).message == message
    assert str(kind()) == ""


@pytest.mark.parametrize("kind", TREE)
def test_a_code_and_a_message_rebuild_the_error(kind: type[Error]) -> None:
    rebuilt = error_from_code(kind.code, "what happened")
    assert type(rebuilt) is kind
    assert str(rebuilt) == "what happened"


@pytest.mark.parametrize("kind", TREE)
def test_an_error_survives_the_way_between_processes(kind: type[Error]) -> None:
    copied = pickle.loads(pickle.dumps(kind("what happened")))
    assert type(copied) is kind
    assert str(copied) == "what happened"


def test_a_code_of_a_newer_version_is_a_plain_error() -> None:
    error = error_from_code("made_of_cheese", "what happened")
    assert type(error) is Error
    assert str(error) == "what happened"
