"""GRAM models behind the interfaces of other benchmarks; nothing else imports them."""
