"""Media and data files made to break what reads them; `python -m tests.data.hostile` runs them all."""
