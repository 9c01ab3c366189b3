"""Images that do not fit in memory: cut into tiles that overlap, decoded from one field of noise, blended."""
