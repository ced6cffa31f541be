"""Who may do what: pure decisions, and the one sink of the audit record."""
