"""What is measured around runs: mask ratios (mask_scan), judges (judge_audit), variants of a run (study)."""
