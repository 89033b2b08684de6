"""What is wrong with an installation, and what an engine used of what was registered."""
