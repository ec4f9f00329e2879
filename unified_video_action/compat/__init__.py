"""The only package that knows other projects' names and file formats."""
