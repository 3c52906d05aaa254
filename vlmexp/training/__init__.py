"""stage=train."""
