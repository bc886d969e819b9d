"""The audit trail: calls recorded in a chain, verified, exported, and delivered to trails."""
