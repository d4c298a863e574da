"""For tests of your own: a clock you set, and contract suites for what you extend.

ManualClock    time that moves when you say so
SourceTests    what every source must do: subclass it in your tests
"""

from fletching_server.testing.clock import ManualClock
from fletching_server.testing.sources import SourceTests

__all__ = ["ManualClock", "SourceTests"]
