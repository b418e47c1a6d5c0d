"""A GPU as the device `cuda` needs it: memory, copies, launches. Nothing here knows a model."""
