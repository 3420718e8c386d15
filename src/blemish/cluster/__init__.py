"""Millions of images: Ray runs the same inspector, and a sweep's cells, on many machines; `blemish[cluster]`."""
