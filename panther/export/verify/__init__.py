"""Checks of the exported file against torch."""
