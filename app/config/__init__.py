"""Settings, the settings file, and limits."""
