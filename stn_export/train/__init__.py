"""The stage ``train``: one training, several in step, and the sweep over models and seeds."""
