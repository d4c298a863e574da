"""A deterministic market without a network: for demonstrations, tests and benchmarks.

    sim            the source: its configuration, what it offers, which symbols it has
    _sim_tables    the market as columns of the canonical datasets
    _sim_tape      one session of one symbol, trade by trade
    _sim_market    the daily life of each symbol
    _sim_sessions  the exchange's days and hours

The rows are made up, but they obey what real ones obey, so that every check on real data can be tried on them.
"""

from __future__ import annotations

from datetime import date
from difflib import get_close_matches
from string import ascii_uppercase
from time import sleep
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fletching_schemas.canonical import canonical
from fletching_schemas.datasets import EPOCH
from fletching_schemas.errors import InvalidRequest, UnknownDataset, UnknownSymbol
from fletching_server.sources._sim_market import Market
from fletching_server.sources._sim_sessions import CALENDARS, day_number, sessions_between
from fletching_server.sources._sim_tables import MAKERS, Maker, stored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fletching_schemas import Dataset, FetchRequest


class _Config(BaseModel):
    """What may be configured; the defaults stand in the constructor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int
    symbols: int = Field(ge=1, le=15_000)
    calendar: str
    first: date = Field(ge=EPOCH)
    last: date | None
    delay_seconds: float = Field(ge=0, allow_inf_nan=False)
    prefix: str
    name: str = Field(min_length=1)
    symbols_per_call: int = Field(ge=1)


class SimSource:
    """A simulated exchange whose every row follows from the seed, whatever is asked for, together or in which order.

    *calendar* is XSHG, XHKG or XNYS. There are rows from *first* to *last* (None: as far as the exchange's calendar is
    known, at most 2039); an earlier *last* or fewer *symbols* change no bar, trade or quote that is left,
    another *first* is another market.
    *delay_seconds* is the simulated latency of one ``fetch``, *prefix* goes before the names of the datasets. Prices
    are in the exchange's currency with ticks of 0.01 and daily limits of 10 %, volumes in shares, instants in UTC.
    Raises ``InvalidRequest`` for values that cannot be. Threads may share it.
    """

    def __init__(
        self,
        seed: int = 7,
        symbols: int = 500,
        calendar: str = "XSHG",
        first: date = date(2015, 1, 1),
        last: date | None = None,
        delay_seconds: float = 0.0,
        prefix: str = "",
        name: str = "sim",
        symbols_per_call: int = 50,
    ) -> None:
        config = _checked(
            seed=seed,
            symbols=symbols,
            calendar=calendar,
            first=first,
            last=last,
            delay_seconds=delay_seconds,
            prefix=prefix,
            name=name,
            symbols_per_call=symbols_per_call,
        )
        self.name = config.name
        self._delay = config.delay_seconds
        self._symbols = _universe(config.calendar, config.symbols)
        self._known = frozenset(self._symbols)
        sessions = sessions_between(config.calendar, config.first, config.last)
        self._market = Market(config.seed, config.calendar, sessions)
        self._tables = self._offer(config)

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> SimSource:
        """Return the source that *values* describe by the constructor's names; ``InvalidRequest`` for any other key."""
        if unknown := sorted(set(map(str, values)) - set(_Config.model_fields)):
            allowed = ", ".join(_Config.model_fields)
            raise InvalidRequest(f"the sim source has no setting {', '.join(unknown)}; it has {allowed}")
        return cls(**values)

    def _offer(self, config: _Config) -> dict[str, tuple[Dataset, Maker]]:
        abilities = {"symbols_per_call": config.symbols_per_call, "first_session": config.first}
        found = {}
        for name, maker in MAKERS.items():
            factors = None if name in {"adj_factors", "instruments"} else config.prefix + "adj_factors"
            dataset = canonical(name, calendar=config.calendar, as_name=config.prefix + name, factors=factors, **abilities)
            found[dataset.name] = (dataset, maker)
        return found

    def datasets(self) -> list[Dataset]:
        """Return the canonical datasets on offer: daily and minute bars, trades, quotes, factors, instruments."""
        return [dataset for dataset, _ in self._tables.values()]

    def symbols(self, dataset: str) -> Sequence[str]:
        """Return all canonical symbols, sorted, the same for each dataset; ``UnknownDataset`` where there is none."""
        self._table(dataset)
        return self._symbols

    def fetch(self, request: FetchRequest) -> pa.Table:
        """Return exactly the rows of the asked symbols and sessions, sorted by key, in the dataset's schema.

        Prices in currency per share, volumes in shares, instants in UTC. Suspended, unlisted and future cells have no
        rows. Raises ``UnknownDataset``, ``UnknownSymbol`` with the nearest symbols, ``InvalidRequest`` where start is
        after end. More symbols than ``symbols_per_call`` are answered too.
        """
        dataset, maker = self._table(request.dataset)
        symbols = tuple(sorted(set(request.symbols)))
        self._check(request, symbols)
        if self._delay:
            sleep(self._delay)
        columns = maker(self._market, symbols, day_number(request.start), day_number(request.end))
        rows = len(columns[dataset.symbol])
        columns["source"] = pa.array([self.name] * rows, pa.string())
        arrays = [stored(columns.get(item.name), item.type, rows) for item in dataset.schema]
        return pa.Table.from_arrays(arrays, schema=dataset.schema)

    def _table(self, dataset: str) -> tuple[Dataset, Maker]:
        if dataset not in self._tables:
            raise UnknownDataset(f"{self.name} has no dataset {dataset!r:.90}; it has {', '.join(self._tables)}")
        return self._tables[dataset]

    def _check(self, request: FetchRequest, symbols: tuple[str, ...]) -> None:
        if request.start > request.end:
            raise InvalidRequest(f"start {request.start} is after end {request.end}; did you mean to swap them?")
        if unknown := [symbol for symbol in symbols if symbol not in self._known]:
            near = get_close_matches(unknown[0], self._symbols, n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else f"symbols look like {self._symbols[0]}"
            raise UnknownSymbol(f"{self.name} has no symbol {', '.join(unknown[:3])}; {hint}")


def _checked(**values: object) -> _Config:
    try:
        config = _Config.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(f"{problem['loc'][0]}: {problem['msg']}" for problem in error.errors())
        raise InvalidRequest(f"the sim source cannot be built: {problems}") from error
    if config.calendar not in CALENDARS:
        raise InvalidRequest(f"the sim source knows the calendars {', '.join(CALENDARS)}, not {config.calendar!r:.40}")
    return config


def _universe(mic: str, count: int) -> tuple[str, ...]:
    """Return *count* symbols in the exchange's own style, sorted; a smaller universe is part of a larger one."""
    return tuple(sorted(_SYMBOLS[mic](number) for number in range(count)))


def _mainland(number: int) -> str:
    position, kind = divmod(number, 5)
    codes = (f"60{2 * position:04}.SH", f"60{2 * position + 1:04}.SH", f"00{2 * position + 1:04}.SZ")
    return (*codes, f"00{2 * position + 2:04}.SZ", f"30{position + 1:04}.SZ")[kind]


def _letters(number: int) -> str:
    return "".join(ascii_uppercase[number // 26**place % 26] for place in (2, 1, 0)) + ".US"


_SYMBOLS: Final = {"XSHG": _mainland, "XHKG": lambda number: f"{number + 1:05}.HK", "XNYS": _letters}
