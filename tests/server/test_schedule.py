"""When to look: before each part of the day begins, at tomorrow once today's rows can be had."""

from __future__ import annotations

from datetime import date
from functools import cache

import pytest

from fletching_server.agenda import Agenda, Slot, of_calendar
from fletching_server.almanac import build_calendar
from fletching_server.schedule import SHORT_LEAD_SECONDS, looks

MICS = ["XSHG", "XHKG", "XNYS", "XSGE", None]


@cache
def agenda(mic: str | None) -> Agenda:
    return of_calendar(build_calendar(mic, date(2026, 11, 20)), date(2026, 9, 1), date(2026, 12, 31))


@pytest.mark.parametrize("mic", MICS)
def test_looks_come_by_time_and_one_of_them_begins_the_session_before_anybody_comes(mic: str | None) -> None:
    for session in range(len(agenda(mic).days)):
        found = looks(agenda(mic), session)
        assert [look.at for look in found] == sorted(look.at for look in found)
        (begins,) = (look for look in found if look.begins)
        assert begins == found[0]
        assert (begins.session, begins.slots, begins.to_memory) == (session, (Slot.ANY,), True)
        assert begins.at < agenda(mic).starts(session)[Slot.PRE_OPEN]


@pytest.mark.parametrize("mic", MICS)
def test_parts_of_the_day_are_looked_at_before_they_begin(mic: str | None) -> None:
    for session in range(len(agenda(mic).days)):
        starts = agenda(mic).starts(session)
        for slot in (Slot.MIDDAY, Slot.LAST_HOUR):
            found = [look for look in looks(agenda(mic), session) if look.slots[0] == slot]
            assert [look.at for look in found] == [starts[slot] - SHORT_LEAD_SECONDS]
            assert all(part >= slot for look in found for part in look.slots)


@pytest.mark.parametrize("mic", MICS)
def test_tomorrow_is_looked_at_when_today_has_settled_and_for_the_disk_only(mic: str | None) -> None:
    found = agenda(mic)
    for session in range(len(found.days)):
        tomorrow = [look for look in looks(found, session) if look.session != session]
        assert bool(tomorrow) == (session + 1 < len(found.days))
        assert all(look.session == session + 1 and not look.to_memory for look in tomorrow)
        assert all(look.at >= found.settled[session] for look in tomorrow)


def test_after_a_half_day_tomorrow_is_looked_at_earlier() -> None:
    york = agenda("XNYS")
    wednesday, friday = (york.number(day) for day in (20_782, 20_784))  # around Thanksgiving 2026
    after = [
        min(look.at for look in looks(york, session) if look.session > session) - york.midnights[session]
        for session in (wednesday, friday)
    ]
    assert after[0] - after[1] == 3 * 3600
