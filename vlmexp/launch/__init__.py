"""Sweeps as jobs: on SLURM or as processes of this machine, and how they stand."""
