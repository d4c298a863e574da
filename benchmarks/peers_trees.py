"""A child that trains gradient-boosted trees on the past and predicts what follows, in the challenger's environment.

``python -m benchmarks.peers_trees FOLDER`` reads session, known and happened there, and writes chance: each session's from trees
that have seen only sessions before it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import lightgbm
import numpy as np

EVERY: Final = 5  # sessions between trainings
LEAST: Final = 5  # sessions before the first; until then nothing is predicted
SETTINGS: Final = {
    "objective": "binary",
    "num_leaves": 15,
    "learning_rate": 0.05,
    "min_data_in_leaf": 50,
    "verbosity": -1,
    "seed": 1,
}
ROUNDS: Final = 150


def main() -> None:
    folder = Path(sys.argv[1])
    session, known, happened = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("session", "known", "happened"))
    chance = np.zeros(len(session))
    for start in np.arange(session.min() + LEAST, session.max() + 1, EVERY):
        before, now = session < start, (session >= start) & (session < start + EVERY)
        if now.any():
            trees = lightgbm.train({**SETTINGS, "num_threads": 1}, lightgbm.Dataset(known[before], happened[before]), ROUNDS)
            chance[now] = trees.predict(known[now])
    np.save(folder / "chance.npy", chance)


if __name__ == "__main__":
    main()
