"""Independent jobs, each a process of its own, handed out here, to a Ray cluster or to SLURM."""
