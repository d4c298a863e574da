"""Every setting, once: its name, default, and what it costs. From arguments, environment or a TOML file, in that order."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from fletching_schemas import Restatement
from fletching_schemas.errors import InvalidRequest
from fletching_schemas.requests import MAX_PARTS


class CalendarSettings(BaseModel):
    """What is said by hand about one exchange, before everything else that is known of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    add: list[date] = Field([], description="Days on which it is open.")
    remove: list[date] = Field([], description="Days on which it is closed.")
    settle_minutes: float | None = Field(None, ge=0, le=1440, description="After the close until rows stop changing.")
    index: str | None = Field(None, description="A symbol that trades on every session, such as 000001.SH.")
    index_dataset: str | None = Field(None, description="The dataset that has its daily bars.")


class FreshnessSettings(BaseModel):
    """How fresh the rows of one dataset must be, in place of what its source says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fresh_seconds: float | None = Field(None, ge=0, description="Age at which rows of an unsettled session are fetched again.")
    stale_seconds: float | None = Field(None, ge=0, description="How much longer they are served while that runs.")
    verify_days: float | None = Field(None, ge=0, description="Age at which final rows are checked in the background.")
    restatement: Restatement | None = Field(None, description="Settled rows that changed: replace, keep or refuse.")


class BudgetSettings(BaseModel):
    """What one upstream family may be asked for, in place of what its source states."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at_once: int = Field(1, ge=1, le=64, description="Calls under way at a time.")
    spacing_seconds: float = Field(0.0, ge=0, le=3600, description="Pause between requests, with jitter.")
    per_hour: int | None = Field(None, ge=1, description="Requests in any hour.")
    per_day: int | None = Field(None, ge=1, description="Requests in any 24 hours.")


class Settings(BaseSettings):
    """The settings of an engine and its server; each is also an environment variable ``FLETCHING_<NAME>``."""

    model_config = SettingsConfigDict(env_prefix="FLETCHING_", extra="forbid", frozen=True)

    store: Path = Field(Path("store"), description="Folder that holds everything; created where it is missing.")
    listen: str = Field(
        "grpc://127.0.0.1:8815", description="Where to listen: grpc://HOST:PORT (port 0: any free one) or grpc+unix:///PATH."
    )
    sources: list[str] = Field([], description="Sources of missing rows, each NAME or NAME:CONFIG.toml.")
    memory: ByteSize = Field(
        ByteSize(512 << 20), description="Budget of the hot tier in bytes owned, such as 4GiB; loads and leases count."
    )
    policy: Literal["density", "lru"] = Field(
        "density",
        description="What leaves memory first: `density`, what saves least waiting per byte; `lru`, what was used longest ago.",
    )
    hot_list: bool = Field(True, description="After a start, bring back into memory what lay there before, in the background.")
    query_memory: ByteSize = Field(ByteSize(1 << 30), description="What DuckDB may use to read Parquet, beside `memory`.")
    threads: int = Field(0, ge=0, description="Threads of DuckDB; 0: one per core.")
    calendar: dict[str, CalendarSettings] = Field(
        {}, description="Per MIC, as `[calendar.XSHG]`: days to `add` and `remove`, `settle_minutes`, reference `index`."
    )
    datasets: dict[str, FreshnessSettings] = Field(
        {}, description="Per dataset, as `[datasets.bars_1d]`: `fresh_seconds`, `stale_seconds`, `verify_days`, `restatement`."
    )
    guard: dict[str, BudgetSettings] = Field(
        {}, description="Per upstream family, as `[guard.eastmoney]`: `at_once`, `spacing_seconds`, `per_hour`, `per_day`."
    )
    patience_seconds: float = Field(
        30.0, ge=0, description="How long a call waits for room in a budget before it is refused with the time to ask again."
    )
    source_seconds: float = Field(90.0, gt=0, description="How long one call to a source may take before it is given up.")
    source_calls: int = Field(4, ge=1, le=64, description="Calls to one source at the same time, unless it states fewer.")
    call_cache: ByteSize = Field(
        ByteSize(1 << 30), description="What the answers of functions may take on disk; those used longest ago leave first."
    )
    compact_segments: int = Field(16, ge=1, description="So many files of a journal, next to each other, are merged at once.")
    compact_idle_seconds: float = Field(
        5.0, gt=0, description="After so long without a commit the journal is folded, if that is cheap, or merged."
    )
    compact_settle_seconds: float = Field(
        3600.0, gt=0, description="After so long the journal is folded even so; it waits longer where that is dear."
    )
    warm: bool = Field(True, description="Learn from the access log who reads what when, and have it ready before they ask.")
    min_confidence: float | None = Field(
        None, ge=0, le=1, description="Warm what is at least so likely, such as 0.7; none: what saves more than it costs."
    )
    warm_seconds: float = Field(900.0, ge=0, description="Seconds of such work in each part of the exchange's day, at most.")
    warm_calls: int = Field(2000, ge=0, description="Upstream calls of such work per day, at most; people come first anyway.")
    warm_bytes: ByteSize = Field(ByteSize(20 << 30), description="Bytes that it may load per day, at most.")
    warm_calls_at_once: int = Field(2, ge=1, le=64, description="Calls to one source at a time that nobody waits for, at most.")
    warm_held_out: float = Field(
        0.05, ge=0, le=0.5, description="This share of its decisions is not carried out, to see what they are worth."
    )
    disk: ByteSize = Field(
        ByteSize(50 * 10**9),
        description="High water: so much may the store's data take on disk, then fetched rows leave; user tables never; 0: any.",
    )
    disk_low: float = Field(0.8, gt=0, le=1, description="Low water: down to this share of `disk` they leave.")
    scrub_days: float = Field(30.0, ge=0, description="Every file's checksum is read again once in so many days; 0: never.")
    scrub_mb_per_second: float = Field(8.0, gt=0, description="How fast that may go, in megabytes per second.")
    local_plane: bool = Field(
        True, description="Let processes of this host and user map what lies in memory, over a socket beside the port."
    )
    local_folder: Path | None = Field(
        None, description="Folder of that socket; none: one of this user's own under $XDG_RUNTIME_DIR or /tmp."
    )
    history_days: float = Field(
        7.0, ge=0, description="How long the past of a dataset is kept, so that `as_of` can read it; 0: not at all."
    )
    vacuum_seconds: float = Field(3600.0, gt=0, description="How often what is older than `history_days` leaves the disk.")
    access_log: bool = Field(True, description="Log who read what, in `system.access_log`.")
    access_days: float = Field(90.0, ge=1, description="How many days of it are kept.")
    access_disk: ByteSize = Field(
        ByteSize(2 * 10**9), description="What it may take on disk; the oldest part leaves first, however few days that leaves."
    )
    access_hash: bool = Field(
        False, description="Log pseudonyms in place of principals, made with the key `access/key` of the store."
    )
    access_seconds: float = Field(1.0, gt=0, description="How often it is written; what a crash takes of it is no older.")
    drain_seconds: float = Field(10.0, ge=0, description="How long SIGTERM waits for streams under way.")
    max_write_bytes: ByteSize = Field(ByteSize(1 << 30), description="The largest single write, in bytes of Arrow data.")
    streams_per_principal: int = Field(64, ge=1, description="Answers that one client connection may have under way at a time.")
    endpoints: int = Field(
        0, ge=0, le=MAX_PARTS, description="Into how many parts a large answer is divided, at most; 0: by the cores, 1: never."
    )
    metrics: str | None = Field(None, description="Where to serve Prometheus metrics over HTTP, as HOST:PORT; none: not.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What is logged.")
    log_format: Literal["console", "json"] = Field("console", description="How it is logged, on stderr.")

    @property
    def most_endpoints(self) -> int:
        """``endpoints``, worked out: half the cores, as reader and server each use one per stream, and at most 8."""
        return self.endpoints or max(1, min(8, (os.cpu_count() or 1) // 2))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the places settings come from, the first wins: arguments, environment, the TOML file."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(config: Path | None = None, **given: Any) -> Settings:
    """Return the settings from *given* (None: not given), the environment and the file *config*; errors name the setting."""
    if config is not None and not config.is_file():
        raise InvalidRequest(f"there is no settings file {config}")
    chosen = {name: value for name, value in given.items() if value is not None}
    kind = type(
        "FileSettings", (Settings,), {"model_config": SettingsConfigDict(**{**Settings.model_config, "toml_file": config})}
    )
    try:
        settings: Settings = kind(**chosen)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"setting {name}: {first['msg']} (it was {first.get('input')!r:.80})") from error
    except ValueError as error:  # TOML or JSON that does not parse
        raise InvalidRequest(f"the settings cannot be read: {error}") from error
    return settings
