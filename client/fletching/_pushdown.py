"""What a Polars query asks of a scan: its predicate as a filter that a server can apply, and never a narrower one.

Polars shows a predicate as the nodes of an optimised plan, through an interface that it may change. All of that is in this
module: what is not understood here is not pushed down, and Polars does it itself. The reader applies the whole predicate again
anyway, so a filter may let rows pass that are not wanted, and must not miss one that is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

import polars as pl
from polars.io.plugins import register_io_source

from fletching_schemas.errors import InvalidRequest
from fletching_schemas.filters import AnyOf, Compare, Filter, IsNull, OneOf, Value, all_of, check_size

_WHOLE_NUMBERS: Final = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)
_COMPARABLE: Final = (
    *_WHOLE_NUMBERS,
    pl.Float64,
    pl.String,
    pl.Boolean,
    pl.Date,
)  # Float32 does not survive the way through JSON
_OPERATORS: Final = {"Eq": "==", "NotEq": "!=", "Lt": "<", "LtEq": "<=", "Gt": ">", "GtEq": ">=", "EqValidity": "=="}
_TURNED: Final = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_BOUNDS: Final = {"both": (">=", "<="), "left": (">=", "<"), "right": (">", "<="), "none": (">", "<")}

Schema = Mapping[str, pl.DataType]


@dataclass(frozen=True)
class Pushed:
    """A predicate as far as it is understood.

    Every row that it wants satisfies ``where`` (None: that says nothing). ``left`` are the parts, as text, that ``where`` does
    not say, or not exactly. ``nothing`` means that it wants no row at all.
    """

    where: Filter | None = None
    left: tuple[str, ...] = ()
    nothing: bool = False


@dataclass(frozen=True)
class Scanned:
    """What an optimised plan asks of one scan: by whom it is read, which columns and how many rows (None: all), which filter."""

    reader: Any
    columns: tuple[str, ...] | None
    limit: int | None
    pushed: Pushed


def pushed(predicate: pl.Expr | None, schema: Schema) -> Pushed:
    """Return what *predicate*, on columns of *schema*, says."""
    if predicate is None:
        return Pushed()
    try:
        plan = register_io_source(_no_rows, schema=dict(schema)).filter(predicate)
        found = list(scans(plan._ldf, lambda _reader: schema))  # noqa: SLF001  # the only way to a plan's nodes
    except Exception:  # noqa: BLE001  # whatever a later Polars does there: then nothing is pushed
        found = []
    return found[0].pushed if len(found) == 1 else Pushed(left=(str(predicate),))


def _no_rows(*_asked: object) -> Iterator[pl.DataFrame]:
    """Stand for a scan in a plan that is looked at, and never run."""
    yield from ()


def scans(plan: Any, schema_of: Callable[[Any], Schema | None]) -> Iterator[Scanned]:
    """Yield each scan of *plan* as it is once optimised; *schema_of* tells the columns of the readers that are meant."""
    nodes = plan.visit()
    waiting = [nodes.get_node()]
    while waiting:
        nodes.set_node(waiting.pop())
        if (found := _scan_here(nodes, schema_of)) is not None:
            yield found
        waiting += reversed(nodes.get_inputs())


def _scan_here(nodes: Any, schema_of: Callable[[Any], Schema | None]) -> Scanned | None:
    try:
        node = nodes.view_current_node()
    except Exception:  # noqa: BLE001  # a node that cannot be shown is none of ours
        return None
    if type(node).__name__ != "PythonScan":
        return None
    function, columns, kind, predicate, limit = node.options
    reader = getattr(function, "io_source", None)
    schema = schema_of(reader) if kind == "io_plugin" else None
    if schema is None:
        return None
    understood = Pushed() if predicate is None else _Predicate(nodes, schema).read(predicate[1])
    return Scanned(reader, None if columns is None else tuple(columns), limit, understood)


class _Predicate:
    """One predicate, and the nodes that it is made of."""

    def __init__(self, nodes: Any, schema: Schema) -> None:
        self._nodes, self._schema = nodes, schema

    def read(self, root: int) -> Pushed:
        """Return what the predicate at *root* says."""
        parts: list[Filter] = []
        left: list[str] = []
        for number in self._conjuncts(root):
            node = self._view(number)
            if _is(node, "Literal") and isinstance(node.value, bool):
                if not node.value:
                    return Pushed(nothing=True)
                continue
            part, exact = self._filter(number)
            parts += [] if part is None else [part]
            left += [] if exact else [self._text(number)]
        where = all_of(parts)
        try:
            if where is not None:
                check_size(where)
        except InvalidRequest:
            return Pushed(left=(self._text(root),))
        return Pushed(where, tuple(left))

    def _view(self, number: int) -> Any:
        try:
            return self._nodes.view_expression(number)
        except Exception:  # noqa: BLE001  # kinds that Polars does not show, instants beyond what Python can say
            return None

    def _conjuncts(self, number: int) -> list[int]:
        """Return the parts that must all hold; And of two numbers is another thing, and never the root of a predicate."""
        return self._joined(number, {"And", "LogicalAnd"})

    def _joined(self, number: int, operators: set[str]) -> list[int]:
        node = self._view(number)
        if not _is(node, "BinaryExpr") or _name(node.op) not in operators:
            return [number]
        return self._joined(node.left, operators) + self._joined(node.right, operators)

    def _filter(self, number: int) -> tuple[Filter | None, bool]:
        """Return a filter that wants no fewer rows (None: there is none), and whether it wants exactly those."""
        node = self._view(number)
        try:
            if _is(node, "BinaryExpr") and _name(node.op) in {"Or", "LogicalOr"}:
                return self._any_of(number)
            if _is(node, "BinaryExpr") and _name(node.op) in {"And", "LogicalAnd"}:
                return self._all_of(number)
            found = self._condition(node)
        except Exception:  # noqa: BLE001  # values larger than a filter has, nodes of another make
            found = None
        return found, found is not None

    def _any_of(self, number: int) -> tuple[Filter | None, bool]:
        parts = [self._filter(each) for each in self._joined(number, {"Or", "LogicalOr"})]
        known = tuple(part for part, _ in parts if part is not None)
        return (AnyOf(known), all(exact for _, exact in parts)) if len(known) == len(parts) else (None, False)

    def _all_of(self, number: int) -> tuple[Filter | None, bool]:
        parts = [self._filter(each) for each in self._conjuncts(number)]
        known = [part for part, _ in parts if part is not None]
        return all_of(known), len(known) == len(parts) and all(exact for _, exact in parts)

    def _condition(self, node: Any) -> Filter | None:
        if (column := self._column(node)) is not None:
            return Compare(column, "==", value=True) if self._schema[column] == pl.Boolean else None
        if _is(node, "BinaryExpr"):
            return self._compared(node.left, node.op, node.right)
        if not _is(node, "Function") or not isinstance(node.function_data, tuple):
            return None
        word, *options = node.function_data
        if (column := self._column(self._view(node.input[0]))) is None:
            return None
        match str(word), options, node.input[1:]:
            case "BooleanFunction.IsNull", _, []:
                return IsNull(column)
            case "BooleanFunction.IsNotNull", _, []:
                return IsNull(column, negated=True)
            case "BooleanFunction.Not", _, [] if self._schema[column] == pl.Boolean:
                return Compare(column, "==", value=False)
            case "BooleanFunction.IsIn", [bool(nulls_equal)], [values]:
                return self._one_of(column, self._view(values), nulls_equal=nulls_equal)
            case "BooleanFunction.IsBetween", [closed], [low, high]:
                return self._between(column, str(closed), low, high)
        return None

    def _column(self, node: Any) -> str | None:
        return node.name if _is(node, "Column") and node.name in self._schema else None

    def _compared(self, left: int, operator: Any, right: int) -> Filter | None:
        sign = _OPERATORS.get(_name(operator))
        column, literal = self._column(self._view(left)), self._view(right)
        if column is None:
            column, literal = self._column(self._view(right)), self._view(left)
            sign = _TURNED.get(sign or "", sign)
        if sign is None or column is None or not _is(literal, "Literal") or not _same_kind(self._schema[column], literal.dtype):
            return None
        if self._schema[column] == pl.Boolean and sign not in {"==", "!="}:
            return None
        return None if literal.value is None else Compare(column, sign, _plain(literal.value))  # type: ignore[arg-type]

    def _between(self, column: str, closed: str, low: int, high: int) -> Filter | None:
        kind, ends = self._schema[column], [self._view(low), self._view(high)]
        if closed not in _BOUNDS or kind == pl.Boolean:
            return None
        if not all(_is(end, "Literal") and _same_kind(kind, end.dtype) and end.value is not None for end in ends):
            return None
        signs = zip(_BOUNDS[closed], ends, strict=True)
        return all_of([Compare(column, sign, _plain(end.value)) for sign, end in signs])  # type: ignore[arg-type]

    def _one_of(self, column: str, literal: Any, *, nulls_equal: bool) -> Filter | None:
        inner = literal.dtype.inner if _is(literal, "Literal") and literal.dtype == pl.List else None
        if inner is None or not _same_kind(self._schema[column], inner) or literal.value is None:
            return None
        held = literal.value  # a list, or a bare series with the list in it
        values = held if isinstance(held, list) else pl.Series._from_pyseries(held)[0].to_list()  # noqa: SLF001  # it is bare
        if nulls_equal and None in values:
            return None
        return OneOf(column, tuple(_plain(value) for value in values if value is not None))  # no row equals a null

    def _text(self, number: int) -> str:
        """Return a part of the predicate for people to read."""
        node = self._view(number)
        match type(node).__name__:
            case "Column":
                return str(node.name)
            case "Literal":
                return str(node.value) if isinstance(node.value, (date, pl.Series)) else repr(node.value)[:60]
            case "BinaryExpr":
                return f"({self._text(node.left)} {_SHOWN.get(_name(node.op), _name(node.op))} {self._text(node.right)})"
            case "Function":
                word, *_ = node.function_data if isinstance(node.function_data, tuple) else (node.function_data,)
                return f"{_name(word)}({', '.join(map(self._text, node.input))})"
            case "Cast":
                return f"{self._text(node.expr)}.cast({node.dtype})"
        return "an expression"


_SHOWN: Final = {**_OPERATORS, "And": "&", "Or": "|", "LogicalAnd": "&", "LogicalOr": "|", "Plus": "+", "Minus": "-"}


def _is(node: Any, kind: str) -> bool:
    return type(node).__name__ == kind


def _name(word: Any) -> str:
    """Return the last part of the name of an operator or a function: ``Gt`` of ``Operator.Gt``."""
    return str(word).rpartition(".")[2]


def _same_kind(column: pl.DataType, literal: pl.DataType) -> bool:
    """Return whether values of the type *literal* are compared with the *column* as they are."""
    if isinstance(column, pl.Datetime):
        instants = isinstance(literal, pl.Datetime) and literal.time_unit == column.time_unit == "us"
        return instants and column.time_zone == "UTC" and getattr(literal, "time_zone", None) is not None
    return column == literal and isinstance(column, _COMPARABLE)


def _plain(value: Any) -> Value:
    """Return a literal's *value* as a filter holds it; ``InvalidRequest`` where it holds none such."""
    if isinstance(value, (bool, int, float, str, date, datetime)):
        return value
    raise InvalidRequest(f"{type(value).__name__} is no value of a filter")
