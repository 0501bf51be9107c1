"""The HTTP surface, one module for each part of it."""
