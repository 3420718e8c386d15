"""Millions of images: Ray runs the same inspector, and the cells of a sweep, on many machines. Needs `blemish[cluster]`."""
