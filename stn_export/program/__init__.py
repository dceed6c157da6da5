"""A captured network: its named inputs and outputs, the places where it samples, and what can be asked of it there.

Nothing else in this package knows how a network is made.
"""
