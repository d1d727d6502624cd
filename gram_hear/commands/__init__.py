"""The programs: one package of commands for each."""
