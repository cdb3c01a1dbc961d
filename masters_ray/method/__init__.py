"""The paper's method: masks, schedule, rewards, divergence, loss, prompts, rules. Needs no cluster or model library."""
