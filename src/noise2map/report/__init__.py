"""Images, plots, tables and pages from results: nothing here runs a model."""
