"""What every long job shares: files written whole, locks, processes side by side, Ctrl-C."""
