"""A detector of another package, for the tests and for docs/write-your-own-detector.md."""
