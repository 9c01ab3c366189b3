"""Fast formulations, each checked against a plain one."""
