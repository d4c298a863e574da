"""The parent's side of a race: contenders in processes of their own, asked in turns, and checked against each other first."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.figures import Row, Spread

ROOT = Path(__file__).parent.parent
_END_SECONDS = 20.0


class Contender:
    """A child that times itself; ``facts`` is what it said about itself when it was ready."""

    def __init__(self, name: str, child: subprocess.Popen[bytes], answers: Any) -> None:
        self.name, self._child, self._answers = name, child, answers
        self._calls: dict[str, int] = {}
        self.facts: dict[str, Any] = self._answer()

    def milliseconds(self, work: str, calls: int) -> list[float]:
        """Return how long each of *calls* took; the next ones go on where these ended."""
        first = self._calls.get(work, 0)
        self._calls[work] = first + calls
        found: list[float] = self._ask(do="time", work=work, first=first, calls=calls)
        return found

    def rows(self, work: str, number: int, path: Path) -> pl.DataFrame:
        """Return what call *number* of *work* finds, in the types that all contenders have."""
        self._ask(do="rows", work=work, first=number, path=str(path))
        frame = pl.read_ipc(path)
        return frame.with_columns(pl.col("symbol").cast(pl.String), pl.col("trading_date").cast(pl.Date))

    def _ask(self, **request: Any) -> Any:
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(request).encode() + b"\n")
        self._child.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        told = self._answers.readline()
        if not told:
            raise RuntimeError(f"{self.name} ended early; what it said is above")
        return json.loads(told)


@contextmanager
def contender(name: str, module: str, given: Mapping[str, Any], python: Path | str = sys.executable) -> Iterator[Contender]:
    """Yield *module* in a child of the interpreter *python*; it ends with the block, or with this process."""
    ready, tell = os.pipe()
    command = [str(python), "-m", module, str(tell), json.dumps(given)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FLETCHING_")}
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=sys.stderr, pass_fds=[tell], cwd=ROOT, env=environment)
    try:
        os.close(tell)
        with os.fdopen(ready) as answers:
            yield Contender(name, child, answers)
    finally:
        assert child.stdin is not None
        child.stdin.close()
        try:
            child.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


Lane = tuple[Contender, str]  # who, and its work


def check_same(lanes: Sequence[Lane], folder: Path, numbers: Sequence[int] = (0, 1)) -> None:
    """Raise where two contenders find other rows than the first."""
    for number in numbers:
        first, *others = [(who, work, who.rows(work, number, folder / f"{who.name}.ipc")) for who, work in lanes]
        for who, work, rows in others:
            if not rows.select(first[2].columns).equals(first[2]):
                raise RuntimeError(f"{who.name} ({work}) finds other rows than {first[0].name} ({first[1]})")


def raced(lanes: Mapping[str, Lane], rounds: int, calls: int = 1) -> dict[str, list[list[float]]]:
    """Return milliseconds per call of each lane, a list per round; each round has an order of its own.

    One that only turned around would let those at its ends, and nobody else, go twice running and find their caches warm.
    """
    samples: dict[str, list[list[float]]] = {name: [] for name in lanes}
    for turn in range(-2, rounds):
        for name in random.Random(turn).sample(sorted(lanes), len(lanes)):
            who, work = lanes[name]
            found = who.milliseconds(work, calls)
            if turn >= 0:
                samples[name].append(found)
    return samples


def faster(what: str, samples: Mapping[str, list[list[float]]], peer: str, target: float | None = None, **more: Any) -> Row:
    """Return the row that says how many times faster ``ours`` is than *peer*."""
    return _row(what, samples, peer, ("peer / ours", ">=", target), **more)


def slower(what: str, samples: Mapping[str, list[list[float]]], peer: str, target: float, **more: Any) -> Row:
    """Return the row that says how many times the time of *peer* ``ours`` takes."""
    return _row(what, samples, peer, ("ours / peer", "<=", target), **more)


def _row(what: str, samples: Mapping[str, list[list[float]]], peer: str, aim: tuple[str, str, float | None], **more: Any) -> Row:
    ratio_is, sign, target = aim
    ours, theirs = ([statistics.median(calls) for calls in samples[name]] for name in ("ours", peer))
    pairs = zip(theirs, ours, strict=True) if sign == ">=" else zip(ours, theirs, strict=True)
    ratio = Spread.of([one / other for one, other in pairs])
    met = None if target is None else ratio.median >= target if sign == ">=" else ratio.median <= target
    return Row(
        what,
        "ms",
        Spread.of([each for calls in samples["ours"] for each in calls]),
        Spread.of([each for calls in samples[peer] for each in calls]),
        ratio,
        "" if target is None else f"{sign} {target:g}",
        met,
        ratio_is=ratio_is,
        **more,
    )
