"""Commands that take models in from other code, and give them out to other programs."""
