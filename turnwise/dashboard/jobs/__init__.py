"""The list of jobs, what is done to a job, and how one is started."""
