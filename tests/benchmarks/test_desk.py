"""The desk simulator: the same seed is the same file, and what is in it is what the profile says."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from benchmarks.desk import profiles, trace
from benchmarks.desk.__main__ import main

SESSIONS = 12
SCHEMA = {
    "ts": pl.Datetime("us", "UTC"),
    "principal": pl.String(),
    "profile": pl.String(),
    "dataset": pl.String(),
    "bucket": pl.String(),
    "session": pl.Date(),
    "bytes": pl.Int64(),
    "request_id": pl.String(),
}


def simulated(name: str, seed: int = 1, sessions: int = SESSIONS) -> pl.DataFrame:
    return trace.simulate(profiles.load(name), seed, sessions)


@pytest.mark.parametrize("name", profiles.names())
def test_the_same_seed_is_the_same_file_in_the_format_of_the_replay(name: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.parquet" for number in (1, 2, 3)]
    for path, seed in zip(paths, ("5", "5", "6"), strict=True):
        main(["--profile", name, "--seed", seed, "--sessions", str(SESSIONS), "--out", str(path)])
    first, again, other = (path.read_bytes() for path in paths)
    assert first == again != other
    frame = pl.read_parquet(paths[0])
    assert dict(frame.schema) == SCHEMA
    assert frame["ts"].is_sorted()
    assert frame.drop("session").null_count().sum_horizontal().item() == 0
    assert (frame["bytes"] > 0).all()
    assert set(frame["profile"]) <= {"research", "trading", "backtesting"}


def test_a_key_has_the_same_bytes_whoever_reads_it() -> None:
    sizes = simulated("desk-a").group_by("dataset", "bucket", "session").agg(pl.col("bytes").n_unique())
    assert sizes["bytes"].max() == 1


def test_partitions_of_one_request_have_one_moment_one_reader_and_one_dataset() -> None:
    requests = simulated("desk-a").group_by("request_id").agg(pl.len(), pl.col("ts", "principal", "dataset").n_unique())
    assert requests["len"].max() == 11 * 21  # a factor refresh
    assert requests.select("ts", "principal", "dataset").max().row(0) == (1, 1, 1)
    alone = simulated("desk-a-list")
    assert alone["request_id"].n_unique() == len(alone)


def test_people_read_sessions_that_are_over_and_screens_the_last_one() -> None:
    frame = simulated("desk-a").filter(pl.col("session").is_not_null())
    assert (frame["session"] <= frame["ts"].dt.date()).all()
    screens = frame.filter(pl.col("principal") == "dashboard-0").with_columns(today=pl.col("session") == pl.col("ts").dt.date())
    assert screens.group_by(pl.col("ts").dt.hour().alias("hour"), "today").len().sort("hour")["today"].to_list() == [
        False
    ] * 3 + [True]


def test_the_sizes_of_components_are_those_of_the_page() -> None:
    frame = simulated("desk-a", sessions=80)
    interactive = frame.filter(pl.col("profile") != "backtesting")
    new = interactive.unique(["dataset", "bucket", "session"])
    assert 250_000 < len(frame) < 350_000
    assert 800 < len(interactive) / 80 < 1000
    assert 0.82 < 1 - len(new) / len(interactive) < 0.88  # the ceiling without prefetching, 85.1 % on the page


def test_an_exchange_has_its_holidays_and_runs_after_the_close_of_a_half_day() -> None:
    frame = simulated("desk-a-xnys", sessions=45)
    days = set(frame["ts"].dt.convert_time_zone("America/New_York").dt.date())
    assert date(2025, 11, 27) not in days  # Thanksgiving
    refreshed = frame.filter(pl.col("principal") == "factors").with_columns(
        pl.col("ts").dt.convert_time_zone("America/New_York").alias("local")
    )
    first = dict(refreshed.group_by(pl.col("local").dt.date().alias("day")).agg(pl.col("local").min()).iter_rows())
    assert first[date(2025, 11, 26)].hour == 17
    assert first[date(2025, 11, 28)].hour == 14  # closed at 13:00
    assert first[date(2025, 10, 31)].utcoffset() != first[date(2025, 11, 3)].utcoffset()


def test_nobody_reads_data_before_they_are_there() -> None:
    profile = profiles.load("desk-a-xnys")
    frame = trace.simulate(profile, 1, SESSIONS).filter(pl.col("session").is_not_null())
    close = pl.Series(
        [datetime(day.year, day.month, day.day, 16, 30, tzinfo=ZoneInfo("America/New_York")) for day in frame["session"]]
    )
    assert (frame["ts"] >= close.dt.convert_time_zone("UTC")).all()


def test_late_data_are_read_later_and_nothing_is_lost(tmp_path: Path) -> None:
    late = tmp_path / "late.toml"
    late.write_text((profiles.FOLDER / "desk-a.toml").read_text() + "\n[late]\nshare = 1.0\nhours = [20, 20]\n")
    frame, usual = trace.simulate(profiles.load(str(late)), 3, SESSIONS), simulated("desk-a", 3)
    key = ["principal", "dataset", "bucket", "session"]
    assert frame.select(key).sort(key).equals(usual.select(key).sort(key))
    fresh = frame.filter(pl.col("dataset") == "ticks")
    waited = (fresh["ts"] - fresh["session"].cast(pl.Datetime("us", "UTC"))).dt.total_minutes()
    assert waited.min() >= 36.5 * 60  # type: ignore[operator]  # from midnight to 16:30, and 20 hours


def test_a_regime_changes_what_people_read_from_the_middle_on() -> None:
    before, usual = simulated("regime-shift", 2), simulated("desk-a", 2)
    people = pl.col("principal").str.starts_with("researcher") & (pl.col("profile") == "research")
    middle = usual["ts"].min() + (usual["ts"].max() - usual["ts"].min()) / 2.5  # type: ignore[operator]
    assert before.filter(people, pl.col("ts") < middle)["bucket"].n_unique() < 500
    names = [
        set(frame.filter(people, pl.col("ts") > usual["ts"].max() - pl.duration(days=2))["bucket"]) for frame in (before, usual)
    ]
    assert len(names[0] & names[1]) < len(names[1]) / 2


def test_without_a_pattern_no_key_of_a_day_is_worth_knowing_tomorrow() -> None:
    def repeated(name: str) -> float:
        frame = simulated(name).filter(pl.col("profile") == "research", pl.col("dataset") == "ticks")
        days = frame.unique([pl.col("ts").dt.date().alias("day"), "bucket"]).group_by("bucket").len()
        return float(days["len"].max() or 0)  # type: ignore[arg-type]

    assert repeated("desk-a") >= SESSIONS - 1 > repeated("no-pattern")


def test_memory_is_one_and_a_half_median_days_of_different_interactive_partitions() -> None:
    day = [datetime(2026, 1, number, 12, tzinfo=ZoneInfo("UTC")) for number in (5, 5, 5, 6, 7, 7)]
    frame = pl.DataFrame(
        {
            "ts": day,
            "profile": ["research", "research", "backtesting", "trading", "research", "research"],
            "dataset": "ticks",
            "bucket": ["a", "a", "b", "c", "d", "e"],
            "session": [date(2026, 1, 2)] * 6,
            "bytes": [10, 10, 500, 20, 30, 40],
        }
    )
    assert trace.memory(frame) == 30


def test_a_profile_that_says_something_unknown_is_refused_with_what_it_may_say(tmp_path: Path) -> None:
    strange = tmp_path / "strange.toml"
    strange.write_text("[researchers]\ncoffee = 3\n")
    with pytest.raises(ValueError, match=r"strange.toml: \[researchers\] says coffee; it may say again, .*weekly_drift"):
        profiles.load(str(strange))
    with pytest.raises(FileNotFoundError, match="there are desk-a, "):
        profiles.load("desk-z")
