"""What a configuration's run takes at measured rates; knows no cluster and no model library.

online.jsonl, metrics.jsonl, journal.json ─► Rates ─► forecast(config, rates) ─► Forecast ─► comparison
"""
