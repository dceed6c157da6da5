"""What a run amounts to: the one place that every stage's card, the report and the model card come from."""
