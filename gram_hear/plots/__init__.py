"""Pictures, a module for each kind; :mod:`gram_hear.style` says how they look."""
