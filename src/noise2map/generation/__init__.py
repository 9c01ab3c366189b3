"""Images drawn by guided diffusion, and depth read from them."""
