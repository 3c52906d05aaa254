"""From examples to batches: prompts, tokens, label masks, shared image prefixes."""
