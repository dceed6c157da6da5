"""The stage ``play``: a page on which the user rotates an image and a network runs on it."""
