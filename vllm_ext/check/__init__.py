"""What is wrong with an installation or with one plugin, and what an engine used of what was registered."""
