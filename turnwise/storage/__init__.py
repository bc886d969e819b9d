"""What outlives a process: the database, files by key, and the data folder that holds both."""
