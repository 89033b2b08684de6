"""Looking for what is wrong: with an installation, and with a plugin."""
