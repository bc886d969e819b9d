"""SageMaker: jobs, hubs, model packages, pipelines, artifacts, MLflow apps and their tags."""
