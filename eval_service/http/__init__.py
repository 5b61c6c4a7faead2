"""The HTTP front of the scoring service: evaluations are submitted, queued on disk, scored by the pool, and asked about.

`evaluations` decides (pure), `ledger` keeps the queue, `dispatcher` moves it through the pool, `app` speaks HTTP.
"""
