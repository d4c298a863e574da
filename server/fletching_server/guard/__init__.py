"""What stands between the cache and an upstream that bans: budgets, circuits, retries, turns, and a memory of all of it.

guard      one call, guarded: admitted, paid for, tried again, judged      turns    who is next, fairly
circuit    when a family of hosts may be asked again (pure)                ledger   what survives a restart, in SQLite
retries    which failures are worth another try, and when
"""

from fletching_server.guard.guard import BudgetSpent, Guard
from fletching_server.guard.turns import Turns

__all__ = ["BudgetSpent", "Guard", "Turns"]
