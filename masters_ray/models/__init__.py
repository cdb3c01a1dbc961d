"""Models and checkpoint files: vLLM for answering and scoring, transformers for training."""
