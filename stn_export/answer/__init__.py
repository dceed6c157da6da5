"""What a run says in eight lines: one place that every stage's last words, the report and the model card come from."""
