"""One job: its overview, configuration, log and files."""
