"""The models: vLLM for answering and scoring, transformers for learning."""
