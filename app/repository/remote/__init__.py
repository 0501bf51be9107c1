"""Models by URL: a remote model repository, mirrored into a folder of this machine. Needs an extra, by its scheme."""
