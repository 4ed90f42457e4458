"""One temperature for a model that ranks its answers well."""
