"""What plugins implement, and what crosses the border between engine and worker."""
