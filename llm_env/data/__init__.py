"""Training data on disk: files and their rows, formats, random access, mixtures."""
