"""Images that are no files of their own on this machine: in tars, in parquet tables, at addresses of object stores."""
