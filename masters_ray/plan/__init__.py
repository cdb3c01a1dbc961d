"""Forecasts how long a configuration's run takes at measured rates; needs no cluster and no model library.

online.jsonl, metrics.jsonl, journal.json ─► Rates ─► forecast(config, rates) ─► Forecast ─► comparison
"""
