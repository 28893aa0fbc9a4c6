"""Whether a run can go on a machine or a cluster, and what each of its actors gets there, before anything starts."""
