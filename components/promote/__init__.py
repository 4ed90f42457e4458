"""The gate, and the report."""
