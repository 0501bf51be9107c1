"""Writing a version into a model repository, and the entries of its card."""
