"""What commands write and resume: files and folders that appear whole, checksums, records of a run."""
