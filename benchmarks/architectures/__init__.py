"""Families of architectures at small size, each taken from torch through the file to the server."""
