"""stage=preview: what a training would be shown, before any weights are read."""
