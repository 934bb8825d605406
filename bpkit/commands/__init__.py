"""The subcommands of `bpkit`, one a file; `bpkit.cli` loads each when it is called."""
