"""Bulk import: files of any size into a table, sorted, without duplicates, published in one commit.

inputs      files, members of zips, tables of databases      text          bytes cut into blocks of whole lines
readers     inputs as chunks of bounded size                 csv_parsing   a block of text as columns
mapping     the TOML that says what columns mean             inference     a mapping worked out from a sample
planning    from paths and options to a plan                 plan          the plan: shown, confirmed, the job's identity
sampling    a look at inputs before anything is decided      raw           what a chunk holds before it is judged
conversion  a chunk in the table's columns, and what is bad  runs          sorted rows of a chunk, and whose they are
staging     every input to runs, side by side                job           the folder of an import, and its checkpoints
merging     the runs of a period as sorted groups            reductions    rows that are left out because it was asked
merge       all periods side by side                         held          rows that the table has, as a run
partitions  groups as Parquet files                          publishing    the next generations, and one commit
rejects     what was not imported, as CSV                    report        what an import tells
change      the commit                                       running       an import from its plan to its report

One import: ``plan_import`` looks at names and a sample and says what will be done. Then every input is read in chunks; each is
parsed, checked, sorted and kept as a *run* in the job's folder, which is the checkpoint: an interrupted import goes on after
the chunks that are there. When all are, the runs of each period are merged in groups of symbols that fit in memory, equal keys
are settled, reductions applied, and the rows streamed into Parquet files. One commit makes all of them visible.
"""

from fletching_server.importing.inference import Asked
from fletching_server.importing.mapping import ImportMapping, load_mapping, to_toml
from fletching_server.importing.plan import ColumnPlan, ImportPlan
from fletching_server.importing.planning import ImportRequest, make_plan
from fletching_server.importing.reductions import Reductions
from fletching_server.importing.report import ImportReport, Progress
from fletching_server.importing.running import dry_run, plan_import, run_import, send_import, workers

__all__ = [
    "Asked",
    "ColumnPlan",
    "ImportMapping",
    "ImportPlan",
    "ImportReport",
    "ImportRequest",
    "Progress",
    "Reductions",
    "dry_run",
    "load_mapping",
    "make_plan",
    "plan_import",
    "run_import",
    "send_import",
    "to_toml",
    "workers",
]
