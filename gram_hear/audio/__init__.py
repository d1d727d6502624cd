"""Sound before the model: files and channel layouts."""
