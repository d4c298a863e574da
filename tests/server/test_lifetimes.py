"""Leases of other processes end when the last copy of their descriptor is closed, by whoever, however."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pyarrow as pa
import pytest

from fletching_server.hot import HotTier, nothing_to_settle
from fletching_server.leases import Lease
from fletching_server.lifetimes import Lifetimes
from fletching_server.policy import LruPolicy

HOLDER = "import os, sys; print(os.fstat(int(sys.argv[1])).st_ino, flush=True); sys.stdin.read()"


@pytest.fixture
def tier() -> Iterator[HotTier]:
    made = HotTier(1 << 20, LruPolicy(), shares=True)
    yield made
    assert made.facts()["hot_leases"] == 0
    made.evict()
    assert (made.facts()["hot_descriptors"], made.check()) == (0, [])


@pytest.fixture
def lifetimes(tier: HotTier) -> Iterator[Lifetimes]:
    made = Lifetimes()
    tier.settle = made.settle
    yield made
    made.close()
    made.close()
    tier.settle = nothing_to_settle


def lease(tier: HotTier) -> Lease:
    found = tier.lend_once(pa.table({"number": list(range(1000))}))
    assert found is not None
    return found


def test_closing_the_descriptor_ends_the_lease(tier: HotTier, lifetimes: Lifetimes) -> None:
    ending = lifetimes.bind(lease(tier))
    assert (tier.facts()["hot_lent_leases"], lifetimes.count) == (1, 1)
    assert tier.facts()["hot_lent_bytes"] == tier.facts()["hot_bytes"] > 0
    os.close(ending)
    assert lifetimes.wait_until_none(20)
    assert (tier.facts()["hot_bytes"], tier.facts()["hot_lent_bytes"]) == (0, 0)


def test_it_lasts_as_long_as_any_copy(tier: HotTier, lifetimes: Lifetimes) -> None:
    ending = lifetimes.bind(lease(tier))
    copy = os.dup(ending)
    os.close(ending)
    lifetimes.settle()
    assert lifetimes.count == 1
    os.close(copy)
    lifetimes.settle()
    assert lifetimes.wait_until_none(20)


def test_a_process_that_is_killed_closes_its_copies(tier: HotTier, lifetimes: Lifetimes) -> None:
    ending = lifetimes.bind(lease(tier))
    command = [sys.executable, "-c", HOLDER, str(ending)]
    with subprocess.Popen(command, pass_fds=[ending], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        os.close(ending)
        lifetimes.settle()
        assert lifetimes.count == 1
        holder.kill()
        assert lifetimes.wait_until_none(20)


def test_news_of_a_descriptor_that_was_used_again_ends_nothing(tier: HotTier, lifetimes: Lifetimes) -> None:
    """Two threads may hear of one end; by the time the second acts on it, the number may stand for another lease."""
    ending = lifetimes.bind(lease(tier))
    (watched,) = lifetimes._leases
    lifetimes._end(watched)
    assert (lifetimes.count, tier.facts()["hot_lent_leases"]) == (1, 1)
    os.close(ending)
    assert lifetimes.wait_until_none(20)


def test_closing_ends_all(tier: HotTier, lifetimes: Lifetimes) -> None:
    endings = [lifetimes.bind(lease(tier)) for _ in range(3)]
    lifetimes.close()
    assert (lifetimes.count, tier.facts()["hot_leases"]) == (0, 0)
    for ending in endings:
        os.close(ending)
