"""Attention, output head and norm: what a packed step computes, without logits in memory."""
