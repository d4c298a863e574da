"""The contract between client, server and sources: datasets, requests, replies, actions, errors.

    datasets   what a named table promises          canonical  the standard tables and their units
    requests   what is asked                        replies    what is told about an answer
    actions    what a server does besides           errors     the one tree of errors
    symbols    every common notation to one         headers    what stands beside a Flight call

pyarrow and the standard library only; no I/O, no threads, no clock.
"""

from fletching_schemas.actions import ACTION_HELP, TABLE_ACTIONS, Action
from fletching_schemas.canonical import CANONICAL_NAMES, canonical
from fletching_schemas.datasets import Dataset, Notation, Period, Restatement, storage_schema, storage_type
from fletching_schemas.replies import Adjustment, Gap, ReadInfo, SymbolStatus, Tier, TierUse, WriteResult
from fletching_schemas.requests import FetchRequest, PartRequest, ReadRequest, WriteRequest
from fletching_schemas.symbols import SUFFIXES, normalise_symbol

__all__ = [
    "ACTION_HELP",
    "CANONICAL_NAMES",
    "SUFFIXES",
    "TABLE_ACTIONS",
    "Action",
    "Adjustment",
    "Dataset",
    "FetchRequest",
    "Gap",
    "Notation",
    "PartRequest",
    "Period",
    "ReadInfo",
    "ReadRequest",
    "Restatement",
    "SymbolStatus",
    "Tier",
    "TierUse",
    "WriteRequest",
    "WriteResult",
    "canonical",
    "normalise_symbol",
    "storage_schema",
    "storage_type",
]
