"""What the stage ``train`` is made of: one training, many in step, and the grid of them."""
