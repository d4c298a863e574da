"""Benchmarks: ``python -m benchmarks``. A regular package, as one of the peers brings a top-level package of this name."""
