"""A child that drives one policy of somebody else's over one packed trace, in the peers' environment.

``python -m benchmarks.peers_policies '{"policy": ..., "trace": ..., "room": ..., "sized": ...}'`` prints hits and hit bytes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, Final

import numpy as np

PACKED: Final = np.dtype([("second", "<u4"), ("key", "<u8"), ("bytes", "<u4"), ("next", "<i8")])
SIMULATED: Final = ("LRU", "S3FIFO", "ARC", "WTinyLFU", "GDSF", "LHD", "Belady", "BeladySize")
_KIB: Final = 1024  # moka's weigher ends at 4 Gi, so it counts these
_MAINTAINED: Final = 64  # requests


def main() -> None:
    asked = json.loads(sys.argv[1])
    drive = _simulated if asked["policy"] in SIMULATED else _CACHES[asked["policy"]]
    hits, hit_bytes = drive(asked)
    print(json.dumps({"hits": hits, "hit_bytes": hit_bytes}))


def _simulated(asked: dict[str, Any]) -> tuple[int, int]:
    """Drive a policy of libCacheSim, all in C."""
    import libcachesim as lcs  # noqa: PLC0415  # is only in the peers' environment

    packed = np.fromfile(asked["trace"], PACKED)
    reader = lcs.TraceReader(trace=asked["trace"], trace_type=lcs.TraceType.ORACLE_GENERAL_TRACE)
    objects = len(np.unique(packed["key"]))
    cache = getattr(lcs, asked["policy"])(asked["room"], hashpower=max(10, int(objects).bit_length() + 1), reader=reader)
    missed, missed_bytes = cache.process_trace(reader)
    total, requested = len(packed), int(packed["bytes"].sum(dtype=np.int64))
    return round((1 - missed) * total), round((1 - missed_bytes) * requested)


def _driven(asked: dict[str, Any], get: Callable[[int], Any], put: Callable[[int, int], Any]) -> tuple[int, int]:
    packed = np.fromfile(asked["trace"], PACKED)
    hits = hit_bytes = 0
    for key, size in zip(packed["key"].tolist(), packed["bytes"].tolist(), strict=True):
        if get(key):
            hits += 1
            hit_bytes += size
        else:
            put(key, size)
    return hits, hit_bytes


def _cachetools(asked: dict[str, Any]) -> tuple[int, int]:
    from cachetools import LRUCache  # noqa: PLC0415

    cache = LRUCache(asked["room"], getsizeof=int)

    def put(key: int, size: int) -> None:
        if size <= asked["room"]:
            cache[key] = size

    return _driven(asked, cache.get, put)


def _theine(asked: dict[str, Any]) -> tuple[int, int]:
    from theine import Cache  # noqa: PLC0415

    cache = Cache(asked["room"], nolock=True)
    return _driven(asked, lambda key: cache.get(key)[1], cache.set)


def _moka(asked: dict[str, Any]) -> tuple[int, int]:
    """Drive moka, whose maintenance is made to happen: by itself it comes when the machine has time."""
    from moka_py import Moka  # noqa: PLC0415

    unit = _KIB if asked["sized"] else 1
    cache = Moka(asked["room"] // unit, weigher=lambda _key, size: -(-size // unit))
    requests = 0

    def get(key: int) -> Any:
        nonlocal requests
        requests += 1
        if requests % _MAINTAINED == 0:
            cache.run_pending_tasks()
        return cache.get(key)

    return _driven(asked, get, cache.set)


_CACHES: Final[dict[str, Callable[[dict[str, Any]], tuple[int, int]]]] = {
    "cachetools LRU": _cachetools,
    "theine": _theine,
    "moka": _moka,
}

if __name__ == "__main__":
    main()
