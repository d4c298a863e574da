"""Where files lie: patterns such as ``minute/{code}/{date:%Y%m%d}_trade.zip``, and the files that match one."""

from __future__ import annotations

import calendar
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from typing import TYPE_CHECKING, Final

from fletching_schemas.errors import SourceUnavailable

if TYPE_CHECKING:
    from pathlib import Path

_TOKEN: Final = re.compile(r"\{(?P<name>[a-z_]+)(?::(?P<format>[^{}]*))?\}|(?P<any>\*)|(?P<brace>[{}])")
_DIRECTIVES: Final = {"%Y": r"\d{4}", "%m": r"\d{2}", "%d": r"\d{2}", "%y": r"\d{2}", "%j": r"\d{3}"}


@dataclass(frozen=True)
class FoundFile:
    """A file that matches a pattern: what its placeholders hold, and the first and last day that its name speaks of."""

    path: Path
    names: dict[str, str] = field(default_factory=dict)
    first: date = date.min
    last: date = date.max
    member: str | None = None

    @property
    def day(self) -> date | None:
        """The one day of the file's name, if it names one."""
        return self.first if self.first == self.last else None

    @property
    def origin(self) -> str:
        """The file as errors name it, with the member of a zip after a ``!``."""
        return f"{self.path}!{self.member}" if self.member else str(self.path)

    def overlaps(self, start: date, end: date) -> bool:
        """Return whether a day of the name lies between *start* and *end*, inclusive."""
        return self.first <= end and self.last >= start


Keep = Callable[[FoundFile], bool]


class PathPattern:
    """A relative path with placeholders: ``{code}`` and others hold a part of a name, ``{date:%Y%m%d}`` a day.

    ``{date:%Y%m}`` and ``{date:%Y}`` hold a month or a year; ``*`` stands for anything within a name.
    Raises ``ValueError`` for a path that could leave its root folder, or a placeholder that cannot be read.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._segments = [_Segment(part) for part in text.split("/")]
        if text.startswith(("/", "~")) or "\\" in text or any(part in {"", ".", ".."} for part in text.split("/")):
            raise ValueError(f"{text!r} must stay below root: no leading /, no empty or .. parts")
        self.placeholders = frozenset(name for segment in self._segments for name in segment.names)
        self.names_days = any("%d" in item or "%j" in item for segment in self._segments for item in segment.formats)

    def find(self, root: Path, keep: Keep) -> Iterator[FoundFile]:
        """Return the matching files below *root*, read from the folders now.

        *keep* is asked at every level with what is known so far and prunes what it refuses. Raises
        ``SourceUnavailable`` naming a folder that is missing or a symbolic link that leads out of *root*.
        """
        if not root.is_dir():
            raise SourceUnavailable(f"the folder {root} is not there; mount it, or correct root")
        real = root.resolve()
        return self._walk(FoundFile(real), 0, real, keep)

    def match(self, found: FoundFile, name: str) -> FoundFile | None:
        """Return *found* with the placeholders of *name*, a file name on its own, or None where it does not match."""
        return self._segments[-1].match(found, name)

    def _walk(self, above: FoundFile, depth: int, root: Path, keep: Keep) -> Iterator[FoundFile]:
        segment, is_last = self._segments[depth], depth + 1 == len(self._segments)
        for name in segment.candidates(above.path, root):
            if not keep(above):  # its answer may change while files are being found
                return
            found = segment.match(above, name)
            if found is None or not keep(found):
                continue
            here = replace(found, path=above.path / name)
            _check_inside(here.path, root)
            if is_last and here.path.is_file():
                yield here
            elif not is_last and here.path.is_dir():
                yield from self._walk(here, depth + 1, root, keep)
            elif segment.is_literal and not above.names and above.first == date.min:
                raise SourceUnavailable(f"{here.path} is not there")


class _Segment:
    """One part of a path between two slashes, as a regular expression with a group per placeholder."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.names: list[str] = []
        self.formats: list[str] = []
        pieces: list[str] = []
        position = 0
        for token in _TOKEN.finditer(text):
            pieces += [re.escape(text[position : token.start()]), self._piece(token)]
            position = token.end()
        self._regex = re.compile("".join([*pieces, re.escape(text[position:])]))
        self.is_literal = len(pieces) == 0

    def _piece(self, token: re.Match[str]) -> str:
        if token["brace"]:
            raise ValueError(f"{self._text!r}: a brace without a partner; a placeholder is {{code}} or {{date:%Y%m%d}}")
        if token["any"]:
            return ".*"
        if token["name"] == "date":
            self.formats.append(token["format"] or "")
            return f"(?P<date{len(self.formats) - 1}>{_date_regex(token['format'] or '')})"
        if token["format"] is not None:
            raise ValueError(f"{token[0]!r}: only date takes a format")
        if token["name"] in self.names:
            return f"(?P={token['name']})"
        self.names.append(token["name"])
        return f"(?P<{token['name']}>.+?)"

    def candidates(self, folder: Path, root: Path) -> Iterator[str]:
        """Return the names to look at: one for a literal, else the folder's, without hidden ones."""
        if self.is_literal:
            return iter([self._text])
        try:
            with os.scandir(folder) as entries:
                return iter(sorted(entry.name for entry in entries if not entry.name.startswith(".")))
        except OSError as error:
            raise SourceUnavailable(f"the folder {folder} below {root} cannot be listed: {error.strerror}") from error

    def match(self, above: FoundFile, name: str) -> FoundFile | None:
        """Return *above* with the placeholders that *name* holds; None where it does not fit them."""
        found = self._regex.fullmatch(name)
        if not found:
            return None
        names = dict(above.names)
        if any(names.setdefault(key, found[key]) != found[key] for key in self.names):
            return None
        first, last = above.first, above.last
        for index, form in enumerate(self.formats):
            days = _days(found[f"date{index}"], form)
            first, last = (max(first, days[0]), min(last, days[1])) if days else (date.max, date.min)
        return replace(above, names=names, first=first, last=last) if first <= last else None


def _check_inside(path: Path, root: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        raise SourceUnavailable(f"{path} is a symbolic link that leads out of {root}; only files below root are read")


def _date_regex(form: str) -> str:
    parts = re.split(r"(%.)", form)
    unknown = [part for part in parts if part.startswith("%") and part not in _DIRECTIVES]
    if unknown or not {"%Y", "%y"} & set(parts) or ("%d" in parts and "%m" not in parts):
        raise ValueError(f"{{date:{form}}}: a date is made of %Y %m %d (or %y, %j) and begins with its year")
    return "".join(_DIRECTIVES.get(part, re.escape(part)) for part in parts)


def _days(text: str, form: str) -> tuple[date, date] | None:
    try:
        first = datetime.strptime(text, form).date()  # noqa: DTZ007  a date has no time zone
    except ValueError:  # the 32nd: digits that are no date
        return None
    if "%d" in form or "%j" in form:
        return first, first
    if "%m" in form:
        return first, first.replace(day=calendar.monthrange(first.year, first.month)[1])
    return first, first.replace(month=12, day=31)
