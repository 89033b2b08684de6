"""What general plugins and platforms register into; every entry remembers who registered it."""
