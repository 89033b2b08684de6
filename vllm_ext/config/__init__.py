"""Settings: their types, where they come from, and which source won."""
