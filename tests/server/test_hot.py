from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import structlog
from tests.conftest import Background, in_threads

from fletching_server.density import DensityPolicy
from fletching_server.hot import HotTier
from fletching_server.image import Image
from fletching_server.leases import Lease
from fletching_server.policy import Item, LruPolicy
from fletching_server.snapshot import StoredFile
from fletching_server.testing import ManualClock


def image(size: int) -> Image:
    """Return an image that claims *size* bytes; the tier looks at nothing else."""
    nothing = np.array([], dtype=np.int64)
    return Image(pa.table({}), (), nothing, nothing, nothing, size, {}, (0, -1))


def item(key: str, size: int = 10, refill_seconds: float = 0.1) -> Item:
    return Item(key, key, size, refill_seconds)


@pytest.fixture
def tier() -> HotTier:
    return HotTier(100, LruPolicy())


def load(tier: HotTier, key: str, size: int) -> Lease | None:
    return tier.load(item(key, size), lambda: image(size))


def held(tier: HotTier) -> set[str]:
    return {key for key in "abcdefgh" if tier.holds(key)}


def test_what_is_held_and_expected_today_stays_when_something_else_comes_that_is_asked_for_more() -> None:
    tier = HotTier(100, DensityPolicy(100))
    for key in ("a", "a", "b", "b", "b"):
        tier.offer(item(key, 50), image(50))
        if lease := tier.lease(item(key, 50)):
            lease.release()
    tier.expect(item("a", 50), 0.9)
    tier.expect(item("h", 50), 0.9)  # is not held
    for _ in range(5):
        tier.lease(item("c", 50))
    tier.offer(item("c", 50), image(50))
    assert held(tier) == {"a", "c"}
    assert tier.check() == []


def test_a_key_is_read_once_and_leased_from_memory_from_then_on(tier: HotTier) -> None:
    reads: list[str] = []

    def read() -> Image:
        reads.append("a")
        return image(10)

    for _ in range(3):
        lease = tier.load(item("a", 10), read)
        assert lease is not None
        lease.release()
    assert reads == ["a"]
    assert tier.facts()["hot_bytes"] == 10
    assert tier.check() == []


def test_what_was_used_longest_ago_leaves_first(tier: HotTier) -> None:
    for key in "abc":
        tier.offer(item(key, 30), image(30))
    with tier.lease(item("a")) or pytest.fail("a left"):
        pass
    tier.offer(item("d", 30), image(30))
    assert held(tier) == {"a", "c", "d"}
    assert tier.facts()["hot_evictions"] == 1


def test_leased_bytes_stay_whatever_comes(tier: HotTier) -> None:
    lease = load(tier, "a", 60)
    assert lease is not None
    assert load(tier, "b", 60) is None
    tier.offer(item("c", 60), image(60))
    assert held(tier) == {"a"}
    lease.release()
    assert load(tier, "b", 60) is not None
    assert held(tier) == {"b"}


def test_an_evicted_entry_leaves_with_its_last_lease_and_counts_until_then(tier: HotTier) -> None:
    one, other = load(tier, "a", 60), load(tier, "a", 60)
    assert one is not None
    assert other is not None
    assert tier.evict() == 0
    assert tier.facts()["hot_bytes"] == 60
    one.release()
    one.release()
    assert tier.facts()["hot_bytes"] == 60
    other.release()
    assert tier.facts()["hot_bytes"] == 0
    assert tier.facts()["hot_leases"] == 0


def test_a_key_that_is_read_again_while_it_waits_to_leave_is_counted_once(tier: HotTier) -> None:
    first = load(tier, "a", 40)
    tier.evict()
    again = load(tier, "a", 40)
    assert first is not None
    assert again is not None
    assert tier.check() == []
    assert tier.facts()["hot_bytes"] == 40
    first.release()
    assert tier.facts()["hot_leases"] == 1
    again.release()
    assert tier.facts()["hot_bytes"] == 0
    assert tier.check() == []


def test_a_key_that_is_offered_while_it_is_read_is_counted_once(tier: HotTier) -> None:
    def read() -> Image:
        tier.offer(item("a", 40), image(40))
        return image(40)

    lease = tier.load(item("a", 40), read)
    assert lease is not None
    assert tier.facts()["hot_bytes"] == 40
    assert tier.check() == []
    lease.release()
    assert tier.facts()["hot_leases"] == 0


def test_a_key_is_offered_once(tier: HotTier) -> None:
    tier.offer(item("a", 40), image(40))
    tier.offer(item("a", 40), image(40))
    assert tier.facts()["hot_bytes"] == 40


def test_what_exceeds_the_whole_budget_is_not_held_and_throws_nothing_out(tier: HotTier) -> None:
    tier.offer(item("a", 40), image(40))
    tier.offer(item("b", 101), image(101))
    assert load(tier, "c", 101) is None
    assert not tier.wants_whole(item("c", 101), 1.0)
    assert held(tier) == {"a"}


def test_an_image_larger_than_was_promised_still_keeps_the_budget(tier: HotTier) -> None:
    lease = tier.load(item("a", 10), lambda: image(101))
    assert lease is not None  # it is passed on, as it was read already, and not held
    assert lease.image.nbytes == 101
    assert held(tier) == set()
    assert tier.facts()["hot_leases"] == 0
    lease.release()
    assert tier.facts()["hot_bytes"] == 0
    assert tier.facts()["hot_reserved_bytes"] == 0


def test_a_load_under_way_counts(tier: HotTier) -> None:
    def read() -> Image:
        assert tier.facts()["hot_reserved_bytes"] == 70
        assert load(tier, "b", 40) is None
        return image(70)

    assert tier.load(item("a", 70), read) is not None
    assert tier.facts()["hot_reserved_bytes"] == 0


def test_all_who_want_a_key_at_once_share_one_read(tier: HotTier) -> None:
    reading, release = threading.Event(), threading.Event()
    reads: list[int] = []

    def read() -> Image:
        reads.append(1)
        reading.set()
        assert release.wait(10)
        return image(10)

    first = Background(lambda: tier.load(item("a", 10), read))
    assert reading.wait(10)
    others = [Background(lambda: tier.load(item("a", 10), read)) for _ in range(4)]
    release.set()
    leases = [call.result() for call in (first, *others)]
    assert len(reads) == 1
    assert tier.facts()["hot_leases"] == 5
    for lease in leases:
        lease.release()


def test_all_who_wait_for_a_read_get_its_error_and_the_next_reads_again(tier: HotTier) -> None:
    reading, release = threading.Event(), threading.Event()

    def fail() -> Image:
        reading.set()
        assert release.wait(10)
        raise OSError("the disk is gone")

    first = Background(lambda: tier.load(item("a", 10), fail))
    assert reading.wait(10)
    other = Background(lambda: tier.load(item("a", 10), fail))
    release.set()
    for call in (first, other):
        with pytest.raises(OSError, match="the disk is gone"):
            call.result()
    assert tier.facts()["hot_reserved_bytes"] == 0
    assert load(tier, "a", 10) is not None


def test_dropped_keys_are_forgotten(tier: HotTier) -> None:
    tier.offer(item("a", 10), image(10))
    tier.offer(item("b", 10), image(10))
    tier.drop({"a", "unheard of"})
    assert held(tier) == {"b"}


def test_evicting_some_keys_leaves_the_others(tier: HotTier) -> None:
    for key in "abc":
        tier.offer(item(key, 10), image(10))
    assert tier.evict({"a", "x"}) == 10
    assert held(tier) == {"b", "c"}


def test_a_lease_is_a_context_that_ends(tier: HotTier) -> None:
    tier.offer(item("a", 10), image(10))
    lease = tier.lease(item("a"))
    assert lease is not None
    with lease:
        assert tier.facts()["hot_leased_bytes"] == 10
    assert tier.facts()["hot_leased_bytes"] == 0
    assert tier.lease(item("b")) is None


def test_the_check_sees_books_that_do_not_add_up(tier: HotTier) -> None:
    tier.offer(item("a", 10), image(10))
    tier._main.held += 5
    assert tier.check() == ["hot tier counts 15 bytes in its main room and holds 10"]
    tier._main.held -= 5
    tier._main.reserved = 95
    assert tier.check() == ["hot tier holds 10 + 95 of 100 bytes in its main room"]
    tier._main.reserved = 0


def test_the_budget_holds_at_every_moment_with_many_threads(tier: HotTier) -> None:
    most = list[int]()

    def use(number: int) -> Any:
        for step in range(120):
            key, size = "abcdefgh"[(number * 5 + step * 3) % 8], 15 + (number + step) % 40
            verb = (number + step) % 5
            if verb == 0:
                tier.offer(item(key, size), image(size))
            elif verb == 1:
                tier.evict({key})
            elif lease := (tier.lease(item(key)) if verb == 2 else load(tier, key, size)):
                facts = tier.facts()
                most.append(facts["hot_bytes"] + facts["hot_reserved_bytes"])
                lease.release()
            assert tier.check() == []

    assert in_threads(6, use) == [None] * 6
    assert max(most) <= 100
    assert tier.facts()["hot_leases"] == 0
    assert tier.facts()["hot_reserved_bytes"] == 0


# The policy's say


class Weighing(LruPolicy):
    """Prefers what takes longest to have again, per byte; a small stand-in for a policy that refuses."""

    def beats(self, item: Item, victims: Sequence[str], chance: float | None = None) -> bool:
        del chance
        return item.refill_seconds > sum(self._held[key].refill_seconds for key in victims)


def test_what_is_worth_less_than_all_it_would_displace_is_refused_before_it_is_read() -> None:
    tier = HotTier(100, Weighing())
    for key in "ab":
        tier.offer(item(key, 50, 1.0), image(50))
    assert tier.load(item("c", 60, 1.5), lambda: pytest.fail("was read")) is None
    tier.offer(item("c", 60, 1.5), image(60))
    assert held(tier) == {"a", "b"}
    assert tier.facts()["hot_refused"] == 2
    with tier.load(item("c", 60, 2.5), lambda: image(60)) or pytest.fail("was refused"):
        assert held(tier) == {"c"}
    assert tier.facts()["hot_evictions"] == 2


def test_every_eviction_is_explained(logs: list[Any]) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG))  # undone with ``logs``
    clock = ManualClock(datetime(2026, 11, 20, tzinfo=UTC))
    tier = HotTier(100, LruPolicy(), clock=clock)
    with tier.load(Item("a-1", "bars/2024/0", 60, 0.25), lambda: image(60)) or pytest.fail("was refused"):
        pass
    tier.offer(item("b", 50), image(50))
    (row,) = tier.evictions().to_pylist()
    told = {"lineage": "bars/2024/0", "key": "a-1", "bytes": 60, "uses": 0.0, "refill_seconds": 0.25, "density": None}
    assert row == {"at": clock.now(), "made_room_for": "b", **told}
    assert [(line["lineage"], line["made_room_for"]) for line in logs] == [("bars/2024/0", "b")]


def test_the_last_evictions_are_remembered_the_newest_first() -> None:
    tier = HotTier(10, LruPolicy())
    for number in range(150):
        tier.offer(item(str(number)), image(10))
    rows = tier.evictions().to_pylist()
    assert [row["key"] for row in rows] == [str(number) for number in range(148, 48, -1)]


def test_the_policy_learns_what_a_load_took() -> None:
    clock = ManualClock(datetime(2026, 11, 20, tzinfo=UTC))
    tier = HotTier(1 << 30, LruPolicy(), clock=clock)
    file = StoredFile("f", "bars", "partition", "2024", 0, "", "", 1, 1_000_000, 1, 0, 1, ("A",))

    def read() -> Image:
        clock.advance(seconds=3)
        return image(1_000_000)

    first = tier.item(file)
    for _ in range(40):
        with tier.load(tier.item(file), read) or pytest.fail("was refused"):
            pass
        tier.evict()
    assert first.refill_seconds < 0.1
    assert tier.item(file).refill_seconds == pytest.approx(3, rel=0.1)


def test_an_item_has_the_bytes_that_are_held() -> None:
    tier = HotTier(100, LruPolicy())
    file = StoredFile("f", "bars", "partition", "2024", 0, "", "", 1, 10, 1, 0, 1, ("A",))
    assert tier.item(file)[:3] == ("f", "bars/2024/0", 10)
    assert tier.item(file).refill_seconds == pytest.approx(0.01, rel=0.1)
    with tier.load(tier.item(file), lambda: image(12)) or pytest.fail("was refused"):
        assert tier.item(file).bytes == 12


def test_the_first_who_asks_for_what_was_expected_is_told() -> None:
    tier = HotTier(100, LruPolicy())
    for _ in range(2):
        with tier.load(item("a"), lambda: image(10), chance=0.5) or pytest.fail("was refused") as lease:
            assert not lease.warmed
    assert [(tier.lease(item("a")) or pytest.fail("left")).warmed for _ in range(2)] == [True, False]


# The ring


@pytest.fixture
def ringed() -> HotTier:
    return HotTier(130, LruPolicy(), ring_bytes=30)


def sweep(tier: HotTier, key: str, size: int = 10) -> Lease | None:
    return tier.load(item(key, size), lambda: image(size), ring=True)


def test_a_sweep_passes_through_the_ring_first_in_first_out_and_leaves_the_rest_alone(ringed: HotTier) -> None:
    for key in "ab":
        ringed.offer(item(key, 50), image(50))
    for key in "cdefgh":
        with sweep(ringed, key) or pytest.fail("was refused"):
            pass
    assert held(ringed) == set("abfgh")
    facts = ringed.facts()
    assert (facts["hot_ring_bytes"], facts["hot_bytes"], facts["hot_evictions"]) == (30, 130, 0)
    ringed.offer(item("c", 60), image(60))
    assert held(ringed) == set("cfgh")
    assert ringed.check() == []


def test_what_a_sweep_reads_now_stays_in_the_ring(ringed: HotTier) -> None:
    leases = [sweep(ringed, key) for key in "abc"]
    assert sweep(ringed, "d") is None
    assert leases[1] is not None
    leases[1].release()
    assert sweep(ringed, "d") is not None
    assert held(ringed) == {"a", "c", "d"}
    assert sweep(ringed, "e", 31) is None


def test_a_sweep_is_no_use(ringed: HotTier) -> None:
    for key in "ab":
        ringed.offer(item(key, 50), image(50))
    for _ in range(3):
        with ringed.peek(item("a")) or pytest.fail("left"), sweep(ringed, "a") or pytest.fail("left"):
            pass
    ringed.offer(item("c", 50), image(50))
    assert held(ringed) == {"b", "c"}


def test_who_is_no_sweep_moves_a_file_out_of_the_ring_if_the_policy_permits() -> None:
    tier = HotTier(130, Weighing(), ring_bytes=30)
    with sweep(tier, "a") or pytest.fail("was refused"):
        pass
    tier.offer(item("b", 95, 1.0), image(95))
    with tier.lease(item("a", 10, 0.5)) or pytest.fail("left"):
        assert tier.facts()["hot_ring_bytes"] == 10
    with tier.lease(item("a", 10, 1.5)) or pytest.fail("left"):
        assert tier.facts()["hot_ring_bytes"] == 0
    assert held(tier) == {"a"}
    assert tier.facts()["hot_ring_hits"] == 2
    assert tier.check() == []
