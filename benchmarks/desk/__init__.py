"""A desk that does not exist: who reads what and when, made from a seed and a profile, in the trace format of ``replay``.

    profiles   what a profile file may say, and reading one
    sessions   the days on which the desk works, and when each opens and closes
    universe   symbols, sectors, tables, and how many bytes each partition has
    requests   what has been asked for, as arrays
    people     researchers and their watch-lists, readers of earnings
    machines   dashboards, factor refresh, weekly reports, backtests, one-off scans
    disorder   late data, keys without a pattern
    trace      all of it together: the frame, the file, and how much memory it takes

The parameters of ``profiles/desk-a.toml`` are those of the reference page. Nobody's real desk is meant.
"""
