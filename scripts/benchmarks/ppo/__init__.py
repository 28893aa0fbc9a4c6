"""What the benchmarks of a PPO iteration share: the work, the contenders that do it, and how they take turns."""
