"""Readers of the event log that feed other systems: one MLflow run per job."""
