"""Matrix-vector templates: one token."""
