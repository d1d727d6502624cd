"""The subcommands of ``gram-hear`` that have a file of their own."""
