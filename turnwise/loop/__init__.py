"""One job's life: plan, collect, assemble, pace, evaluate, run."""
