"""Tools that the maintainers run in a checkout, by Make; the installed package imports nothing from here."""
