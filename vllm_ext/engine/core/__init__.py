"""The engine core, which schedules, executes and updates, and the ways to have one in a thread or a process."""
