"""What runs kernels: pool, job tables, tape, attention, the small operations."""
