"""The PD side: members, timestamps, Regions as PD shows them, keyspaces, settings, and the faults of all these."""
