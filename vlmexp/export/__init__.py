"""stage=export: from the trained weights to a checked model that anybody can load."""
