"""Packing, attention, output head and norm of a packed training step, without the logits in memory."""
