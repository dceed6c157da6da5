"""The answer of a run: the one source of every stage's card, the report and the model card."""
