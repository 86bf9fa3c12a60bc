"""Which users and items share a pool: collaborative groups, attributes, controls, and newcomers without retraining."""
