"""Models by URL: a remote model repository, mirrored to a local folder. Requires an extra, depending on the scheme."""
