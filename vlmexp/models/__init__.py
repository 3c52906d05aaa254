"""Loading models and processors, attaching and merging adapters."""
