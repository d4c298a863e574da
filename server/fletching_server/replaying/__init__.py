"""Driving policy, predictor and decision rule by a log, at full speed, on a clock that the log sets.

trace      a log read and checked: who asked for which partition when
hours      whose sessions and hours a trace keeps, as it does not say so
costs      what memory, disk and upstream take, in seconds
memory     the hot tier without bytes: the policy's store, the ring
shelf      the disk without bytes: what leaves when it is full
workers    background work that takes time, one thing after the other
ahead      what is made ready: the predictor, the rule, the judge, acting at the moments that matter
run        one request after the other
outcome    what came of it, for programs and for people
keys       traces of keys alone drive the policy alone
"""

from fletching_server.replaying.costs import Costs
from fletching_server.replaying.keys import KeysOutcome, replay_keys
from fletching_server.replaying.outcome import Outcome
from fletching_server.replaying.run import Plan, replay
from fletching_server.replaying.trace import Trace, read_trace, trace_of

__all__ = ["Costs", "KeysOutcome", "Outcome", "Plan", "Trace", "read_trace", "replay", "replay_keys", "trace_of"]
