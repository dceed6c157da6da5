"""A captured network: its named inputs and outputs, its sampling sites, and ways to run and inspect it.

Nothing else in this package knows how a network is made.
"""
