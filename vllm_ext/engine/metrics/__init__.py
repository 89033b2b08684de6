"""What an engine measures for its stat loggers, and how they are told. Without a logger nothing of it is at work."""
