"""Process groups and the communicators that work on them."""
