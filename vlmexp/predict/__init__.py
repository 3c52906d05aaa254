"""stage=predict: answers to questions that have none yet."""
