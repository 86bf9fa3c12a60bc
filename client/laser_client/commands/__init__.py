"""The subcommands of `laser`, one file each. They read no argv and no environment; `laser_client.cli` does."""
