"""Training of an image encoder for several tasks at once, before any decoder is trained on it."""
