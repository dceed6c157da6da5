"""The stage ``bench``: what is timed, how, and what the figures say."""
