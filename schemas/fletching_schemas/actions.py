"""What a server does besides reading and writing: the names, once, and whether the answer is JSON or a table."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Action(StrEnum):
    """A verb of the interface; its value is the name on the wire, its body a JSON object."""

    DATASETS = "datasets"
    COVERAGE = "coverage"
    EXPLAIN = "explain"
    STATS = "stats"
    HEALTH = "health"
    WARM = "warm"
    EVICT = "evict"
    INVALIDATE = "invalidate"
    DELETE = "delete"
    COMPACT = "compact"
    RETENTION = "retention"
    VACUUM = "vacuum"
    VERIFY = "verify"
    PROVENANCE = "provenance"
    RESTATEMENTS = "restatements"
    SESSIONS = "sessions"
    PROGRESS = "progress"
    CALL = "call"
    GUARD = "guard"
    EVICTIONS = "evictions"


ACTION_HELP: Final[dict[Action, str]] = {
    Action.DATASETS: "Table of datasets: name, kind, calendar, period, rows, bytes, symbols, first and last session.",
    Action.COVERAGE: "Table of what is held: symbol, first, last, state, reason, fetched_at. Body: dataset, symbols, start, end.",
    Action.EXPLAIN: "What a read would do, without doing it: files, tiers, gaps, calls. Body: the read request.",
    Action.STATS: "Counters of reads, tiers, upstream calls and memory since the start.",
    Action.HEALTH: "Whether the server takes requests, its version, uptime, store and sources.",
    Action.WARM: (
        "Has rows where a read of them will find them: on disk and, unless memory is false, in memory. Body: dataset, symbols, "
        "start, end, columns, adjust, max_age, profile, memory, progress_id, explain (only tells)."
    ),
    Action.EVICT: "Drops a dataset (or all) from memory; nothing is lost. Body: dataset.",
    Action.INVALIDATE: "Forgets that cells are held, so that the next read fetches them. Body: dataset, symbols, start, end.",
    Action.DELETE: "Deletes a user table, or what is held of a sourced dataset. Body: dataset.",
    Action.COMPACT: "Folds the journal into partitions now. Body: dataset.",
    Action.RETENTION: "Says how long the past of a dataset is kept. Body: dataset, history_days (none: as the settings say).",
    Action.VACUUM: "Frees the disk of the past that is kept no longer. Body: dataset (none: all), history_days.",
    Action.VERIFY: "Checks every file, checksum and coverage fact of the store, and lists what is wrong.",
    Action.PROVENANCE: "Table of fills: who delivered what, when, and how it was checked. Body: dataset, symbols, start, end.",
    Action.RESTATEMENTS: "Table of settled rows that came back changed, before and after. Body: dataset, symbols, start, end.",
    Action.SESSIONS: "Table of an exchange's sessions: hours, half days, when settled, who vouches. Body: mic, start, end.",
    Action.PROGRESS: "How far a read is: upstream calls done, failed and due. Body: id, the read's progress_id.",
    Action.CALL: (
        "Table of what a function of a source's library returned, kept or fetched; without a function, the functions. "
        "Body: source, function, arguments, max_age, profile, on_miss."
    ),
    Action.GUARD: "Table of upstream budgets: what is spent, what is left, and when to ask again.",
    Action.EVICTIONS: "Table of what left memory lately to make room: when, what, for what, and the numbers that decided it.",
}

# These answer with an Arrow IPC stream, all others with a JSON object.
TABLE_ACTIONS: Final = frozenset(
    {
        Action.DATASETS,
        Action.COVERAGE,
        Action.PROVENANCE,
        Action.RESTATEMENTS,
        Action.SESSIONS,
        Action.CALL,
        Action.GUARD,
        Action.EVICTIONS,
    }
)
