"""Commands of experiments that train."""
