"""The paper: masks, schedule, rewards, divergence, loss, prompts and rules. Knows no cluster and no model library."""
