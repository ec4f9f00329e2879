"""Formats of recordings, one file each: a `Source` that a configuration names, and an `EpisodeStore` that reads it."""
