"""Benchmarks against other learners; they need requirements/bench.txt beside the stack."""
