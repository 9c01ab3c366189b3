"""Commands about what a model may be trusted with."""
