"""What the maintainers run in a checkout, by Make: no part of the installed package, which imports nothing of it."""
