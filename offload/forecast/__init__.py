"""What a machine will do with a model, before either is there."""
