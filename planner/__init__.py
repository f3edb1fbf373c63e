"""Pure functions: performance and cost model, capacity plan, scaling decisions, cluster simulation (docs/planner.md)."""
