"""What the stage ``play`` is made of: a page on which a picture is turned by hand and a network looks at it."""
