"""Workloads, load generation, peers and reports, the quality tasks, and the recipe of vorta-mini."""
