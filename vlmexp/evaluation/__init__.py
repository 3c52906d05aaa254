"""stage=eval_base and stage=eval_finetuned: generate, score, aggregate."""
