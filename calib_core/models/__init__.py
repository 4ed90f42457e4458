"""Which files a model has, what it needs of memory, and loading it."""
