"""Output of commands, and how it is resumed: files and folders that appear whole, checksums, records of a run."""
