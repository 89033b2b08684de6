"""Example endpoint."""
