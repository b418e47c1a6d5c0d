"""Matrix-matrix templates: many tokens."""
