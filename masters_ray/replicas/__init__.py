"""What runs inside Ray actors. Plain classes that hold weights; Ray is put on where they are spawned (pool.py)."""
