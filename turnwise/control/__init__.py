"""Control plane: job files, datasets, jobs and their queue, the model registry."""
