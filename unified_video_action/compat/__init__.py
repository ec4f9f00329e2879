"""The only place that knows other projects' names and file formats."""
